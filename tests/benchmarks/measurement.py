"""The form of a benchmark's result.

A benchmark is a module in this folder with ``def run() -> list[Measurement]``. It measures its
reference in the same run, interleaved with what it measures, and takes medians: absolute times on
a shared machine drift by a factor of two within minutes, ratios do not.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """One figure, what it is held against, and how far it may go.

    ``reference_value`` is in the same unit. The goal is a largest ratio, a largest value, or
    neither, where the figure is only to be known.
    """

    name: str
    value: float
    unit: str
    reference: str = ""
    reference_value: float | None = None
    largest_ratio: float | None = None
    largest_value: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.value / self.reference_value if self.reference_value else None

    @property
    def goal(self) -> str:
        if self.largest_ratio is not None:
            return f"ratio <= {self.largest_ratio:g}"
        if self.largest_value is not None:
            return f"value <= {self.largest_value:g}"
        return ""

    @property
    def met(self) -> bool | None:
        """None where there is no goal."""
        if self.largest_ratio is not None:
            return self.ratio is not None and self.ratio <= self.largest_ratio
        if self.largest_value is not None:
            return self.value <= self.largest_value
        return None

    def row(self) -> dict[str, object]:
        """What goes into build/bench.json."""
        return {
            "name": self.name,
            "value": round(self.value, 6),
            "unit": self.unit,
            "reference": self.reference,
            "reference_value": self.reference_value,
            "ratio": None if self.ratio is None else round(self.ratio, 4),
            "goal": self.goal,
            "met": self.met,
        }

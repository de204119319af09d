"""Categorical sketches: counts over the schema's vocabulary, and OTHER in the last place.

Merging adds integers and is exact. What a category means is the schema's business.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleet_contract import limits
from fleet_contract.errors import Reason, Refused, SketchMismatch
from fleet_contract.features import CategoricalFeature


class CategoricalSketch(msgspec.Struct, frozen=True, array_like=True):
    """Counts per category; the last one is OTHER."""

    counts: list[int]

    @property
    def rows(self) -> int:
        """Number of values counted."""
        return sum(self.counts)


def check(sketch: CategoricalSketch, feature: CategoricalFeature) -> None:
    """Check a sketch from a peer against its feature.

    Raises:
        Refused: ``malformed`` if the counts are not those of the vocabulary, or out of range.
    """
    if len(sketch.counts) != len(feature.vocabulary) + 1:
        raise Refused(Reason.MALFORMED, f"feature {feature.name} has another vocabulary")
    if min(sketch.counts) < 0 or sketch.rows > limits.ROWS_PER_WINDOW:
        raise Refused(Reason.MALFORMED, "a count of a sketch is out of range")


def merge(left: CategoricalSketch, right: CategoricalSketch) -> CategoricalSketch:
    """Return the sketch of both together.

    Raises:
        SketchMismatch: if the vocabularies differ in size.
    """
    if len(left.counts) != len(right.counts):
        raise SketchMismatch(f"{len(left.counts)} categories against {len(right.counts)}")
    return CategoricalSketch([a + b for a, b in zip(left.counts, right.counts, strict=True)])


class CategoricalBank:
    """Accumulates the sketches of all categorical features of one side of a model.

    Not thread-safe: the recorder that owns it holds a lock.
    """

    def __init__(self, features: Sequence[CategoricalFeature]) -> None:
        self._sizes = [len(feature.vocabulary) + 1 for feature in features]
        self.clear()

    def clear(self) -> None:
        """Forget everything counted so far."""
        self._counts = [np.zeros(size, dtype=np.int64) for size in self._sizes]

    def update(self, indices: NDArray[np.int64]) -> None:
        """Count a batch.

        Args:
            indices: int64 of shape [rows, features]; what is no index of the vocabulary is OTHER.

        Raises:
            Refused: ``malformed`` for another shape.
        """
        if indices.ndim != 2 or indices.shape[1] != len(self._sizes):
            raise Refused(
                Reason.MALFORMED, f"expected [rows, {len(self._sizes)}], got {indices.shape}"
            )
        for i, size in enumerate(self._sizes):
            column = indices[:, i]
            known = np.where((column >= 0) & (column < size - 1), column, size - 1)
            self._counts[i] += np.bincount(known, minlength=size)

    def sketches(self) -> list[CategoricalSketch]:
        """Return what was counted since the last :meth:`clear`, one sketch a feature."""
        return [CategoricalSketch(counts.tolist()) for counts in self._counts]

"""Gate: calibration and baseline rows look like data: enough, complete, varied, of one range.

Judges the rows alone. That they fit the inputs, and that golden and evaluation rows do, is checked
when they are read. A state may stand still: rows that all begin a sequence have its first value.
"""

from collections.abc import Iterator, Set

import numpy as np
from numpy.typing import NDArray

from fleet_server.releases.gates.given import Given, Rows
from fleet_server.releases.limits import LEAST_BASELINE_ROWS, PRODUCTION_BASELINE_ROWS
from fleet_server.releases.states import GateResult

NAME = "data-sanity"
ADVICE = (
    "Draw both from what the model sees in use, prepared alike; leave out inputs that never "
    "change, or say why they may: --override data-sanity=REASON."
)
ROWS = "baseline_rows"
MOST_OUTSIDE = 0.05
"""Share of values outside the other sample's range: beyond it the two are not alike."""
CHANCE = 14
"""The range of n values leaves out a share of their distribution that is Beta(2, n - 1) distributed
(Wilks, "Determination of sample sizes for setting tolerance limits", Annals of Mathematical
Statistics 12, 1941): more than 14/n once in 80,000 times."""
TABULAR_COLUMNS = 32
"""As many columns are looked at one by one; larger inputs as a whole."""


def judge(given: Given) -> list[GateResult]:
    """Return rows, missing values, constant inputs, and what lies outside the ranges."""
    rows = len(next(iter(given.baseline.values())))
    later = "" if rows >= PRODUCTION_BASELINE_ROWS else f"; production: {PRODUCTION_BASELINE_ROWS}"
    results = [
        _result(
            ROWS,
            rows,
            LEAST_BASELINE_ROWS,
            rows >= LEAST_BASELINE_ROWS,
            f"The baseline has {rows} rows, at least {LEAST_BASELINE_ROWS} are needed{later}.",
        )
    ]
    for field, data in (("calibration", given.calibration), ("baseline", given.baseline)):
        missing = max(map(_missing, data.values()))
        results.append(
            _result(
                f"{field}_nulls",
                missing,
                0.0,
                missing == 0,
                f"{missing:.1%} of an input's values in {field} are missing; none may be.",
            )
        )
        constant = _constant(data, given.states)
        shown = f" ({', '.join(constant)[:200]})" if constant else ""
        results.append(
            _result(
                f"{field}_constant_inputs",
                len(constant),
                0,
                not constant,
                f"{len(constant)} inputs never change in {field}{shown}; each has to vary.",
            )
        )
    for name, inner, outer, what in (
        ("calibration_outside", given.calibration, given.baseline, "calibration outside baseline"),
        ("baseline_outside", given.baseline, given.calibration, "baseline outside calibration"),
    ):
        found = [
            where for key, array in inner.items() for where in _outside(key, array, outer[key])
        ]
        where, share, bound = max(found, key=_excess, default=("", 0.0, MOST_OUTSIDE))
        named = f" ({where})" if share > bound else ""
        results.append(
            _result(
                name,
                share,
                bound,
                share <= bound,
                f"{share:.1%} of an input's values in {what} lie out of its range{named}; at most "
                f"{bound:.0%} may.",
            )
        )
    return results


def _result(name: str, figure: float, bound: float, passed: bool, note: str) -> GateResult:
    return GateResult(NAME, name, figure, bound, passed, note)


def _missing(array: NDArray[np.generic]) -> float:
    return float(np.isnan(array).mean()) if array.dtype.kind == "f" else 0.0


def _constant(rows: Rows, states: Set[str]) -> list[str]:
    found = []
    for name, array in rows.items():
        if name in states:
            continue
        flat = array.reshape(len(array), -1)
        if _is_table(array):
            still = (flat == flat[:1]).all(axis=0)
            found += [f"{name} column {column}" for column in np.flatnonzero(still)]
        elif not _moves(array):
            found.append(name)
    return found


def _moves(array: NDArray[np.generic]) -> bool:
    return bool((array != array[:1]).any())


def _outside(
    name: str, array: NDArray[np.generic], other: NDArray[np.generic]
) -> Iterator[tuple[str, float, float]]:
    """Yield an input or its columns, the share of its values out of the other's range, and which
    share may be. What never changes has no range; that is a figure of its own.
    """
    parts = [(name, array, other)]
    if _is_table(array):
        columns = range(array.shape[1])
        parts = [(f"{name} column {at}", array[:, at], other[:, at]) for at in columns]
    for where, ours, theirs in parts:
        if _moves(ours) and _moves(theirs):
            outside = (ours < theirs.min()) | (ours > theirs.max())
            # Few values do not show how far they reach, and one of few is a large share.
            bound = min(1.0, max(MOST_OUTSIDE, CHANCE / min(ours.size, theirs.size)))
            yield where, float(outside.mean()), bound


def _excess(found: tuple[str, float, float]) -> float:
    return found[1] - found[2]


def _is_table(array: NDArray[np.generic]) -> bool:
    return array.ndim == 2 and array.shape[1] <= TABULAR_COLUMNS

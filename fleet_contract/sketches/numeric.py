"""Numeric sketches: moments on a fixed-point grid and a histogram on the schema's edges.

A sketch holds integers only (minimum and maximum are raw values), so merging is exact, commutative
and associative: float sums give other bits in another order. The bank updates all features of a
batch together, since one vectorised comparison is ten times cheaper for the small batches of a
device than a search per feature.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleet_contract import limits
from fleet_contract.errors import Reason, Refused, SketchMismatch
from fleet_contract.features import INNER_EDGES, NumericFeature

BINS = INNER_EDGES + 1
GRID_LIMIT = 1 << 20
"""Values are clipped to ±2**20 steps of the grid in the sums, so that the squares of
``limits.ROWS_PER_WINDOW`` = 2**22 rows stay within 62 bits. Bins, minimum and maximum are not."""

_SEARCH_FROM_ROWS = 256
"""From this batch size on, a search per feature is cheaper than comparing with every edge."""


class NumericSketch(msgspec.Struct, frozen=True, array_like=True):
    """What was seen of one numeric feature.

    ``rows`` counts everything, ``nulls`` (missing), ``nans`` and the infinities included.
    ``total`` and ``total_squares`` are in steps of the grid and its square, over finite values.
    ``bins`` are the 32 counts of finite values: bin i holds edge[i - 1] ≤ x < edge[i].
    """

    rows: int
    nulls: int
    nans: int
    negative_infinities: int
    positive_infinities: int
    minimum: float | None
    maximum: float | None
    total: int
    total_squares: int
    bins: list[int]

    @property
    def finite(self) -> int:
        """Number of finite values."""
        return sum(self.bins)


def check(sketch: NumericSketch) -> None:
    """Check a sketch from a peer: counts are bounded, not negative and add up.

    Raises:
        Refused: ``malformed`` otherwise.
    """
    odd = (sketch.nulls, sketch.nans, sketch.negative_infinities, sketch.positive_infinities)
    if len(sketch.bins) != BINS:
        raise Refused(Reason.MALFORMED, f"a numeric sketch has {BINS} bins")
    if min(*odd, *sketch.bins, sketch.rows) < 0 or sketch.rows > limits.ROWS_PER_WINDOW:
        raise Refused(Reason.MALFORMED, "a count of a sketch is out of range")
    if sketch.finite + sum(odd) != sketch.rows:
        raise Refused(Reason.MALFORMED, "the counts of a sketch do not add up")
    if (sketch.minimum is None) != (sketch.finite == 0) or (sketch.maximum is None) != (
        sketch.finite == 0
    ):
        raise Refused(Reason.MALFORMED, "a sketch has extremes exactly if it has finite values")
    if sketch.minimum is not None and sketch.maximum is not None:
        extremes = (sketch.minimum, sketch.maximum)
        if not all(map(math.isfinite, extremes)) or sketch.minimum > sketch.maximum:
            raise Refused(Reason.MALFORMED, "the extremes of a sketch are out of range")
    if abs(sketch.total) > GRID_LIMIT * sketch.rows or not (
        0 <= sketch.total_squares <= GRID_LIMIT**2 * sketch.rows
    ):
        raise Refused(Reason.MALFORMED, "a sum of a sketch is out of range")


def empty() -> NumericSketch:
    """Return the sketch of nothing: the neutral element of :func:`merge`."""
    return NumericSketch(0, 0, 0, 0, 0, None, None, 0, 0, [0] * BINS)


def merge(left: NumericSketch, right: NumericSketch) -> NumericSketch:
    """Return the sketch of both together; both must be on the edges of one schema.

    Raises:
        SketchMismatch: if the numbers of bins differ.
    """
    if len(left.bins) != len(right.bins):
        raise SketchMismatch(f"{len(left.bins)} bins against {len(right.bins)}")
    lows = [x for x in (left.minimum, right.minimum) if x is not None]
    highs = [x for x in (left.maximum, right.maximum) if x is not None]
    return NumericSketch(
        rows=left.rows + right.rows,
        nulls=left.nulls + right.nulls,
        nans=left.nans + right.nans,
        negative_infinities=left.negative_infinities + right.negative_infinities,
        positive_infinities=left.positive_infinities + right.positive_infinities,
        # Adding 0.0 turns -0.0 into 0.0: which of two equal zeros wins would depend on the order.
        minimum=min(lows) + 0.0 if lows else None,
        maximum=max(highs) + 0.0 if highs else None,
        total=left.total + right.total,
        total_squares=left.total_squares + right.total_squares,
        bins=[a + b for a, b in zip(left.bins, right.bins, strict=True)],
    )


def mean(sketch: NumericSketch, feature: NumericFeature) -> float | None:
    """Return the mean of the finite values in the feature's own unit, None if there are none."""
    count = sketch.finite
    return sketch.total / count * 2.0**-feature.grid_bits if count else None


class NumericBank:
    """Accumulates the sketches of all numeric features of one side of a model.

    Not thread-safe: the recorder that owns it holds a lock.
    """

    def __init__(self, features: Sequence[NumericFeature]) -> None:
        width = len(features)
        self._edges = np.array([feature.edges for feature in features]).reshape(width, INNER_EDGES)
        self._scale = np.exp2(np.array([feature.grid_bits for feature in features], dtype=float))
        self._offsets = np.arange(width) * BINS
        self.clear()

    def clear(self) -> None:
        """Forget everything counted so far."""
        width = len(self._scale)
        self._rows = 0
        self._odd = np.zeros((4, width), dtype=np.int64)  # nulls, NaN, -inf, +inf
        self._low = np.full(width, np.inf)
        self._high = np.full(width, -np.inf)
        self._total = np.zeros(width, dtype=np.int64)
        self._squares = np.zeros(width, dtype=np.int64)
        self._bins = np.zeros(width * BINS, dtype=np.int64)

    def update(self, values: NDArray[np.float64], missing: NDArray[np.bool_] | None = None) -> None:
        """Count a batch.

        Args:
            values: float64 of shape [rows, features].
            missing: bool of the same shape, True where there is no value.

        Raises:
            Refused: ``malformed`` for another shape, ``too_large`` beyond
                ``limits.ROWS_PER_WINDOW`` rows in all.
        """
        width = len(self._scale)
        if values.ndim != 2 or values.shape[1] != width:
            raise Refused(Reason.MALFORMED, f"expected [rows, {width}], got {values.shape}")
        if self._rows + len(values) > limits.ROWS_PER_WINDOW:
            raise Refused(Reason.TOO_LARGE, f"over {limits.ROWS_PER_WINDOW} rows in one window")
        self._rows += len(values)
        if not values.size:
            return
        finite = np.isfinite(values)
        if missing is not None:
            finite &= ~missing
        if finite.all():
            clean = values
            low, high = values.min(axis=0), values.max(axis=0)
        else:
            self._count_odd(values, missing)
            clean = np.where(finite, values, 0.0)
            low = np.where(finite, values, np.inf).min(axis=0)
            high = np.where(finite, values, -np.inf).max(axis=0)
        np.minimum(self._low, low, out=self._low)
        np.maximum(self._high, high, out=self._high)
        with np.errstate(over="ignore"):  # the product becomes infinite and is clipped
            steps = np.rint(clean * self._scale)
        grid = np.clip(steps, -GRID_LIMIT, GRID_LIMIT).astype(np.int64)
        self._total += grid.sum(axis=0)
        self._squares += (grid * grid).sum(axis=0)
        slots = self._bin_numbers(clean) + self._offsets
        self._bins += np.bincount(slots[finite], minlength=len(self._bins))

    def sketches(self) -> list[NumericSketch]:
        """Return what was counted since the last :meth:`clear`, one sketch a feature."""
        table = self._bins.reshape(-1, BINS)
        return [
            NumericSketch(
                self._rows,
                int(self._odd[0, i]),
                int(self._odd[1, i]),
                int(self._odd[2, i]),
                int(self._odd[3, i]),
                float(self._low[i]) + 0.0 if table[i].any() else None,
                float(self._high[i]) + 0.0 if table[i].any() else None,
                int(self._total[i]),
                int(self._squares[i]),
                table[i].tolist(),
            )
            for i in range(len(self._scale))
        ]

    def _count_odd(self, values: NDArray[np.float64], missing: NDArray[np.bool_] | None) -> None:
        there = np.ones(values.shape, dtype=bool) if missing is None else ~missing
        self._odd += np.stack(
            [
                (~there).sum(axis=0),
                (np.isnan(values) & there).sum(axis=0),
                (np.isneginf(values) & there).sum(axis=0),
                (np.isposinf(values) & there).sum(axis=0),
            ]
        )

    def _bin_numbers(self, clean: NDArray[np.float64]) -> NDArray[np.int64]:
        if len(clean) < _SEARCH_FROM_ROWS:
            return np.asarray((clean[:, :, None] >= self._edges).sum(axis=2), dtype=np.int64)
        return np.column_stack(
            [
                np.searchsorted(edges, clean[:, i], side="right")
                for i, edges in enumerate(self._edges)
            ]
        )

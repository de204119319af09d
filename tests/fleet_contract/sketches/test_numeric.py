"""Guards that numeric sketches merge exactly, in any order, and count what numpy would count."""

from __future__ import annotations

import math
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet_contract import codec
from fleet_contract.errors import Refused, SketchMismatch
from fleet_contract.features import INNER_EDGES, NumericFeature, Reduction, Source
from fleet_contract.sketches import numeric
from fleet_contract.sketches.numeric import BINS, GRID_LIMIT, NumericBank, NumericSketch

EDGES = [float(edge) for edge in np.linspace(-4, 4, INNER_EDGES)]
FEATURES = [
    NumericFeature("fine", Source("x", Reduction.COLUMN, 0), 10, EDGES),
    NumericFeature("coarse", Source("x", Reduction.COLUMN, 1), -3, [x * 100 for x in EDGES]),
    NumericFeature("tied", Source("x", Reduction.COLUMN, 2), 40, [0.0] * INNER_EDGES),
]
values = st.one_of(
    st.floats(-5, 5),
    st.floats(),
    st.sampled_from([*EDGES, 0.0, -0.0, 1e308, -1e308, math.nan, math.inf, -math.inf]),
)
batches = st.lists(st.tuples(values, values, values), max_size=12).map(
    lambda rows: np.array(rows, dtype=float).reshape(len(rows), 3)
)


def of(*tables: NDArray[np.float64]) -> list[NumericSketch]:
    bank = NumericBank(FEATURES)
    for table in tables:
        bank.update(table)
    return bank.sketches()


def same(left: list[NumericSketch], right: list[NumericSketch]) -> bool:
    """Bit by bit: 0.0 and -0.0 are equal for Python, and not on the wire."""
    return codec.encode_msgpack(left) == codec.encode_msgpack(right)


def merge(left: list[NumericSketch], right: list[NumericSketch]) -> list[NumericSketch]:
    return [numeric.merge(a, b) for a, b in zip(left, right, strict=True)]


@given(one=batches, two=batches, three=batches)
def test_merging_is_exact_in_any_order(
    one: NDArray[np.float64], two: NDArray[np.float64], three: NDArray[np.float64]
) -> None:
    a, b, c = of(one), of(two), of(three)
    assert same(merge(a, b), merge(b, a))
    assert same(merge(merge(a, b), c), merge(a, merge(b, c)))
    assert same(merge(a, [numeric.empty()] * 3), a)
    whole = np.concatenate([one, two, three])
    assert same(merge(merge(a, b), c), of(whole))
    assert same(of(one, two, three), of(whole))
    assert same(of(whole[::-1]), of(whole))
    for sketch in of(whole):
        numeric.check(sketch)


@given(table=batches)
def test_counts_are_those_of_a_naive_reference(table: NDArray[np.float64]) -> None:
    for column, feature, sketch in zip(table.T, FEATURES, of(table), strict=True):
        finite = [float(x) for x in column if math.isfinite(x)]
        assert sketch.rows == len(column)
        assert sketch.nans == sum(math.isnan(x) for x in column)
        assert sketch.positive_infinities == sum(x == math.inf for x in column)
        assert sketch.negative_infinities == sum(x == -math.inf for x in column)
        assert sketch.finite == len(finite)
        assert sketch.minimum == min(finite, default=None)
        assert sketch.maximum == max(finite, default=None)
        bins = [0] * BINS
        steps = []
        for x in finite:
            bins[sum(x >= edge for edge in feature.edges)] += 1
            # Half to even, as Python rounds, in exact arithmetic; then clipped.
            step = round(Fraction(x) * Fraction(2) ** feature.grid_bits)
            steps.append(max(-GRID_LIMIT, min(GRID_LIMIT, step)))
        assert sketch.bins == bins
        assert sketch.total == sum(steps)
        assert sketch.total_squares == sum(step * step for step in steps)


@pytest.mark.parametrize("rows", [1, 255, 256, 1_000])
def test_bins_are_those_of_numpys_histogram_below_and_above_the_switch(rows: int) -> None:
    drawn = np.random.default_rng(rows).normal(0, 3, size=(rows, 3))
    drawn[0] = EDGES[3]
    sketch = of(drawn)[0]
    # numpy closes the last bin on the right; beyond every value that makes no difference.
    reference, _ = np.histogram(drawn[:, 0], bins=[-1e9, *EDGES, 1e9])
    assert sketch.bins == reference.tolist()


def test_missing_values_are_nulls_whatever_lies_there() -> None:
    bank = NumericBank(FEATURES)
    table = np.array([[1.0, math.nan, math.inf], [2.0, 3.0, 4.0]])
    missing = np.array([[True, True, True], [False, False, False]])
    bank.update(table, missing)
    for sketch in bank.sketches():
        numeric.check(sketch)
        assert (sketch.rows, sketch.nulls, sketch.finite, sketch.nans) == (2, 1, 1, 0)
    bank.clear()
    assert same(bank.sketches(), [numeric.empty()] * 3)


def test_mean_is_in_the_features_own_unit() -> None:
    sketch = of(np.array([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]))[0]
    assert numeric.mean(sketch, FEATURES[0]) == 1.5
    assert numeric.mean(numeric.empty(), FEATURES[0]) is None


def test_sums_of_a_full_window_of_extremes_stay_within_63_bits() -> None:
    bank = NumericBank(FEATURES[:1])
    rows = np.full((1 << 18, 1), 1e300)
    for _ in range(16):
        bank.update(rows)
    [sketch] = bank.sketches()
    assert sketch.total_squares == (1 << 22) * GRID_LIMIT**2 < 2**63
    numeric.check(sketch)
    with pytest.raises(Refused, match="too_large"):
        bank.update(rows)


def test_other_shapes_are_refused() -> None:
    for table in (np.zeros(3), np.zeros((2, 2)), np.zeros((1, 3, 1))):
        with pytest.raises(Refused, match="expected"):
            NumericBank(FEATURES).update(table)


def test_sketches_on_other_edges_are_not_merged() -> None:
    other = NumericSketch(0, 0, 0, 0, 0, None, None, 0, 0, [0] * 5)
    with pytest.raises(SketchMismatch):
        numeric.merge(numeric.empty(), other)


@pytest.mark.parametrize(
    "change",
    [
        {"bins": [0] * 31},
        {"bins": [-1, 2, *[0] * 30]},
        {"rows": 2},
        {"rows": -1},
        {"nulls": -1, "rows": 0},
        {"nulls": 1},
        {"minimum": None},
        {"maximum": None},
        {"minimum": math.nan},
        {"maximum": math.inf},
        {"minimum": 1.0, "maximum": 0.5},
        {"total": GRID_LIMIT + 1},
        {"total_squares": -1},
        {"total_squares": GRID_LIMIT**2 + 1},
        {"rows": 1 << 23, "nulls": (1 << 23) - 1},
    ],
    ids=str,
)
def test_forged_sketches_are_refused(change: dict[str, object]) -> None:
    bank = NumericBank(FEATURES[:1])
    bank.update(np.array([[0.75]]))
    [good] = bank.sketches()
    numeric.check(good)
    with pytest.raises(Refused, match="malformed"):
        numeric.check(msgspec.structs.replace(good, **change))

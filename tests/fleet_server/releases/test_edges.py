"""Guards from edges that are not strictly increasing, and from grids that clip the baseline."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_contract.features import INNER_EDGES, NumericFeature, Reduction, Source
from fleet_contract.sketches.numeric import GRID_LIMIT, NumericBank
from fleet_server.releases import edges

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


def _check(found: list[float]) -> None:
    assert len(found) == INNER_EDGES
    assert all(a < b for a, b in pairwise(found))
    assert np.isfinite(found).all()


@given(st.lists(FINITE, min_size=1, max_size=200))
def test_edges_increase_whatever_the_data(values: list[float]) -> None:
    _check(edges.quantile_edges(np.array(values)))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=300), st.floats(0.1, 1e6))
def test_edges_increase_for_few_distinct_values(values: list[int], scale: float) -> None:
    _check(edges.quantile_edges(np.array(values, dtype=float) * scale))


@given(st.floats(-1e12, 1e12), st.integers(1, 50))
def test_edges_increase_for_neighbouring_floats(value: float, count: int) -> None:
    steps = [value]
    for _ in range(count):
        steps.append(float(np.nextafter(steps[-1], np.inf)))
    _check(edges.quantile_edges(np.array(steps)))


def test_fixed_edges() -> None:
    _check(list(edges.PROBABILITY_EDGES))
    for classes in (2, 10, 4096):
        _check(edges.entropy_edges(classes))


def test_change_of_a_constant_would_go_unseen() -> None:
    inner = edges.quantile_edges(np.full(100, 7.0))
    bins = [np.searchsorted(inner, value, side="right") for value in (6.9, 7.0, 7.1)]
    assert len(set(bins)) == 3


def test_value_above_all_of_the_baseline_would_go_unseen() -> None:
    inner = edges.quantile_edges(np.repeat([0.0, 8.0, 16.0], 100))
    assert np.searchsorted(inner, 16.0, "right") != np.searchsorted(inner, 20.0, "right")
    assert np.searchsorted(inner, 0.0, "right") != np.searchsorted(inner, -1.0, "right")


def test_continuous_baseline_fills_its_bins_evenly() -> None:
    values = np.random.default_rng(1).normal(size=20_000)
    inner = edges.quantile_edges(values)
    counts = np.bincount(np.searchsorted(inner, values, side="right"), minlength=32)
    middle = counts[5:27] / len(values)
    assert middle == pytest.approx(0.9 / 22, abs=0.01)


@given(st.lists(FINITE, min_size=1, max_size=50))
def test_grid_holds_eight_times_the_baseline(values: list[float]) -> None:
    array = np.array(values, dtype=float)
    bits = edges.grid_bits(array)
    largest = float(np.abs(array).max())
    if largest < 2.0**50:
        assert largest * 2.0**bits * 8 <= GRID_LIMIT
    feature = NumericFeature("x", Source("x", Reduction.MEAN), bits, edges.quantile_edges(array))
    bank = NumericBank([feature])
    bank.update(array.reshape(-1, 1))
    assert bank.sketches()[0].finite == len(values)

"""Guards that latency sketches stay within 2%, merge exactly and survive forged ones."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_contract.errors import Refused
from fleet_contract.sketches import latency
from fleet_contract.sketches.latency import ALPHA, BOUNDS_US, EMPTY, LONGEST_US, LatencySketch

latencies = st.lists(
    st.one_of(
        st.integers(0, 100),
        st.integers(0, LONGEST_US),
        st.sampled_from(BOUNDS_US),
        st.sampled_from(BOUNDS_US).map(lambda bound: bound + 1),
    ),
    max_size=40,
)


@given(one=latencies, two=latencies, three=latencies)
def test_merging_is_exact_in_any_order(one: list[int], two: list[int], three: list[int]) -> None:
    a, b, c = latency.of(one), latency.of(two), latency.of(three)
    assert latency.merge(a, b) == latency.merge(b, a)
    assert latency.merge(latency.merge(a, b), c) == latency.merge(a, latency.merge(b, c))
    assert latency.merge(a, EMPTY) == latency.merge(EMPTY, a) == a
    assert latency.merge(a, b) == latency.of([*one, *two])
    latency.check(latency.merge(a, b))


@given(drawn=latencies.filter(bool), share=st.floats(0, 1))
def test_quantile_is_within_two_percent(drawn: list[int], share: float) -> None:
    exact = max(1, min(sorted(drawn)[math.floor(share * (len(drawn) - 1))], LONGEST_US))
    found = latency.quantile_us(latency.of(drawn), share)
    assert found is not None
    assert abs(found - exact) <= ALPHA * exact * (1 + 1e-12)


def test_every_bucket_is_within_two_percent_at_both_ends() -> None:
    low = 1
    for bound in BOUNDS_US:
        for value in (low, bound):
            found = latency.quantile_us(latency.of([value]), 0.5)
            assert found is not None
            assert abs(found - value) <= ALPHA * value * (1 + 1e-12)
        low = bound + 1


@given(drawn=latencies.filter(bool), shares=st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_quantile_is_monotone(drawn: list[int], shares: list[float]) -> None:
    sketch = latency.of(drawn)
    found = [latency.quantile_us(sketch, share) for share in sorted(shares)]
    assert found == sorted(found, key=lambda value: value or 0.0)


def test_bounds_need_no_logarithm_and_no_floating_point() -> None:
    assert BOUNDS_US[:4] == (1, 2, 3, 4)
    assert BOUNDS_US[-1] == LONGEST_US
    for low, high in itertools.pairwise(BOUNDS_US):
        assert high == min(LONGEST_US, max(low + 1, low * 102 // 98))


def test_latencies_beyond_the_range_are_clipped() -> None:
    sketch = latency.of([-5, LONGEST_US + 1])
    assert sketch.total_us == LONGEST_US
    assert sketch.first == 0
    assert sketch.first + len(sketch.counts) == len(BOUNDS_US)
    latency.check(sketch)


def test_quantile_of_nothing() -> None:
    assert latency.quantile_us(EMPTY, 0.5) is None


@pytest.mark.parametrize(
    "sketch",
    [
        LatencySketch(0, -1, [1]),
        LatencySketch(0, len(BOUNDS_US), [1]),
        LatencySketch(0, 0, [1] * (len(BOUNDS_US) + 1)),
        LatencySketch(0, 0, [1, -1, 1]),
        LatencySketch(0, 0, [1 << 23]),
        LatencySketch(-1, 0, [1]),
        LatencySketch(LONGEST_US + 1, 0, [1]),
        LatencySketch(1, 0, []),
        LatencySketch(0, 3, []),
        LatencySketch(0, 0, [0]),
        LatencySketch(0, 0, [0, 1]),
        LatencySketch(0, 0, [1, 0]),
    ],
    ids=str,
)
def test_forged_sketches_are_refused(sketch: LatencySketch) -> None:
    with pytest.raises(Refused, match="malformed"):
        latency.check(sketch)


@given(
    total_us=st.integers(-2, 2**62),
    first=st.integers(-2, len(BOUNDS_US) + 1),
    counts=st.lists(st.integers(-1, 3), max_size=5),
    share=st.floats(0, 1),
)
def test_what_passes_the_check_can_be_used(
    total_us: int, first: int, counts: list[int], share: float
) -> None:
    sketch = LatencySketch(total_us, first, counts)
    try:
        latency.check(sketch)
    except Refused:
        return
    assert (latency.quantile_us(sketch, share) is None) == (sketch.count == 0)
    assert latency.merge(sketch, latency.of([5])).count == sketch.count + 1

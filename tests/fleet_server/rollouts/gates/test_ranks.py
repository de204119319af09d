"""Guards the rank-sum test against scipy, against enumeration, and against ties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from fleet_server.rollouts.gates import ranks
from fleet_server.rollouts.gates.ranks import rank_sum


def enumerated(candidate: np.ndarray, control: np.ndarray) -> float:
    values = np.concatenate([candidate, control])
    midranks = stats.rankdata(values)
    k = len(candidate)
    observed = midranks[:k].sum()
    sums = [midranks[list(c)].sum() for c in itertools.combinations(range(len(values)), k)]
    return float(np.mean([total >= observed - 1e-9 for total in sums]))


@pytest.mark.parametrize(("k", "m"), [(1, 5), (3, 9), (7, 4), (5, 5)])
@pytest.mark.parametrize("values", [3, 1000])
def test_exact_distribution_with_ties(k: int, m: int, values: int) -> None:
    rng = np.random.default_rng(k * 100 + m + values)
    for _ in range(10):
        a = rng.integers(0, values, k).astype(float)
        b = rng.integers(0, values, m).astype(float)
        result = rank_sum(a, b, alpha=0.01, seed=1)
        assert result.method == "exact"
        assert result.p == pytest.approx(enumerated(a, b), abs=1e-12)


def test_without_ties_it_is_scipys() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(0.3, 1, 20), rng.normal(0, 1, 40)
    expected = stats.mannwhitneyu(a, b, alternative="greater", method="exact")
    result = rank_sum(a, b, alpha=0.01, seed=1)
    assert result.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert result.superiority == pytest.approx(expected.statistic / 800)


def test_one_odd_device_among_equals_condemns_a_release() -> None:
    """The normal approximation gives 6e-6 here."""
    candidate, control = np.array([0.0, 0.0, 0.1]), np.zeros(57)
    assert rank_sum(candidate, control, alpha=0.01, seed=1).p == pytest.approx(0.05)
    three = rank_sum(np.array([0.1, 0.2, 0.3]), control, alpha=0.01, seed=1)
    assert three.p == pytest.approx(1 / 34220)


def test_large_arms_are_drawn_where_ties_dominate_and_normal_elsewhere() -> None:
    rng = np.random.default_rng(3)
    tied_a = (rng.random(800) < 0.02).astype(float)
    tied_b = (rng.random(3000) < 0.02).astype(float)
    drawn = rank_sum(tied_a, tied_b, alpha=0.001, seed=4)
    assert drawn.method == "drawn"
    assert drawn == rank_sum(tied_a, tied_b, alpha=0.001, seed=4)
    table = [
        [tied_a.sum(), len(tied_a) - tied_a.sum()],
        [tied_b.sum(), len(tied_b) - tied_b.sum()],
    ]
    assert drawn.p == pytest.approx(stats.fisher_exact(table, "greater").pvalue, abs=0.03)
    smooth = rank_sum(rng.normal(0, 1, 800), rng.normal(0, 1, 3000), alpha=0.001, seed=4)
    assert smooth.method == "normal"


def test_larger_arm_than_control() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 4, 9).astype(float), rng.integers(0, 4, 3).astype(float)
    assert rank_sum(a, b, alpha=0.01, seed=1).p == pytest.approx(enumerated(a, b))


def test_empty_arm() -> None:
    with pytest.raises(ValueError, match="two arms"):
        rank_sum(np.array([]), np.zeros(3), alpha=0.01, seed=1)


def test_exact_enumeration_is_worth_its_price() -> None:
    assert 40 * 400 * 2 * 400 * 40 > ranks.EXACT_STEPS > 60 * 3 * 2 * 60 * 3

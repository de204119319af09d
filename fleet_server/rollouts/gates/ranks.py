"""The one-sided rank-sum test (Mann and Whitney 1947) with ties treated exactly.

Decides how a p-value is found for few, many and tied values. Most devices of a healthy fleet have
the same change (none at all), and the normal approximation is wrong by orders of magnitude when
nearly everything is tied: one odd device in an arm of 3 among 60 would look like p = 6e-6, and its
true value is .05. So the distribution of the rank sum is enumerated while that is affordable
(dynamic programming over midranks, exact), drawn from a seeded generator where ties dominate, and
approximated only for large arms with few ties.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

EXACT_STEPS = 300_000_000
"""Additions that the exact distribution may cost: about 0.3 s; 40 devices among 400."""

LARGE_ARM = 50
TIED_SHARE = 0.5
DRAWS_PER_ALPHA = 20


@dataclass(frozen=True, slots=True)
class RankSum:
    """``superiority`` is the probability that a candidate's value exceeds a control's (ties count
    half; 0.5 under no difference). ``p`` is one-sided: small when the candidate's are larger.
    """

    superiority: float
    p: float
    method: str


def rank_sum(
    candidate: NDArray[np.float64], control: NDArray[np.float64], *, alpha: float, seed: int
) -> RankSum:
    """Test whether the candidate's values tend to be larger.

    Args:
        candidate: float64 of shape [k], one value a device.
        control: float64 of shape [m].
        alpha: the level in question; drawn distributions have at least 20/alpha draws.
        seed: for the draws.

    Raises:
        ValueError: if an arm is empty.
    """
    k, m = len(candidate), len(control)
    if not k or not m:
        raise ValueError("a rank-sum test needs two arms")
    values = np.concatenate([candidate, control])
    # Twice the midranks are integers.
    doubled = np.rint(2 * stats.rankdata(values)).astype(np.int64)
    observed = int(doubled[:k].sum())
    u = observed / 2 - k * (k + 1) / 2
    superiority = u / (k * m)
    n = k + m
    small = min(k, m)
    if small * n * (2 * n * small) <= EXACT_STEPS and math.comb(n, small) < 1e300:
        p = _exact(doubled, k, observed)
        return RankSum(superiority, p, "exact")
    counts = np.unique(doubled, return_counts=True)[1]
    if small >= LARGE_ARM and counts.max() < TIED_SHARE * n:
        result = stats.mannwhitneyu(candidate, control, alternative="greater", method="asymptotic")
        return RankSum(superiority, float(result.pvalue), "normal")
    return RankSum(superiority, _drawn(doubled, k, observed, alpha, seed), "drawn")


def _exact(doubled: NDArray[np.int64], k: int, observed: int) -> float:
    """Return P(sum of k of these ≥ observed) over all subsets of size k."""
    total = int(doubled.sum())
    if k > len(doubled) - k:
        # The complement is smaller: its sum is total - sum.
        return _tail(doubled, len(doubled) - k, total - observed, upper=False)
    return _tail(doubled, k, observed, upper=True)


def _tail(doubled: NDArray[np.int64], k: int, bound: int, *, upper: bool) -> float:
    # Shifted to start at 0, so that the table is as narrow as the ranks are.
    low = int(doubled.min())
    shifted = np.sort(doubled - low)
    widest = int(shifted[-k:].sum()) if k else 0
    ways = np.zeros((k + 1, widest + 1))
    ways[0, 0] = 1.0
    for value in shifted.tolist():
        # numpy reads the right side before it writes, so no value is counted twice.
        ways[1:, value:] += ways[:-1, : widest + 1 - value]
    distribution = ways[k] / ways[k].sum()
    cut = bound - k * low
    if upper:
        return float(distribution[max(cut, 0) :].sum()) if cut <= widest else 0.0
    return float(distribution[: cut + 1].sum()) if cut >= 0 else 0.0


def _drawn(doubled: NDArray[np.int64], k: int, observed: int, alpha: float, seed: int) -> float:
    ranks, sizes = np.unique(doubled, return_counts=True)
    generator = np.random.default_rng(seed)
    draws = max(999, math.ceil(DRAWS_PER_ALPHA / alpha))
    picked = generator.multivariate_hypergeometric(sizes, k, size=draws, method="marginals")
    hits = int((picked @ ranks >= observed).sum())
    return (hits + 1) / (draws + 1)

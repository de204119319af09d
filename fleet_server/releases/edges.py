"""Where the bins of a numeric feature lie, and how fine its grid is.

Inputs are binned at quantiles of the baseline data, so that every bin holds some of it; figures
with natural bounds (probabilities, margins, entropies) on fixed edges, finest where models that
are sure of themselves live.
"""

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fleet_contract.features import EDGE_QUANTILES, INNER_EDGES

Values = NDArray[np.float64]

PROBABILITY_EDGES = (
    *(round(0.05 * step, 2) for step in range(1, 19)),
    *(0.92, 0.94, 0.95, 0.96, 0.97, 0.975, 0.98, 0.985, 0.99, 0.995, 0.998, 0.999, 0.9999),
)
"""For the winning probability and its margin."""

_ENTROPY_SHARES = (
    *(0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.08),
    *(round(0.1 + 0.05 * step, 2) for step in range(17)),
)
_GRID_BITS = 20
_HEADROOM_BITS = 3
"""The sums' grid reaches eight times as far as the baseline; beyond that they are clipped."""
_NARROW = 1e-9
"""Relative to its size, a feature that varies less than this is a constant."""


def entropy_edges(classes: int) -> list[float]:
    """Return edges for an entropy in nats over this many classes."""
    return [share * math.log(max(classes, 2)) for share in _ENTROPY_SHARES]


def quantile_edges(values: Values) -> list[float]:
    """Return 31 strictly increasing edges at the quantiles of finite values (at least one).

    Where quantiles coincide (whole numbers, many equal values), the widest gaps between those that
    remain are halved until there are enough, and the largest value gets a bin of its own, so that
    larger ones are seen to be new.
    """
    low, high = float(values.min()), float(values.max())
    if high - low <= _NARROW * max(abs(low), abs(high)):
        return _around(low)
    edges = [float(edge) for edge in np.unique(np.quantile(values, EDGE_QUANTILES))]
    if len(edges) < INNER_EDGES and edges[-1] == high:
        edges.append(high + (high - low) / 16)
    edges = edges[:INNER_EDGES]
    while len(edges) < INNER_EDGES:
        if len(edges) == 1:
            edges = sorted({low, *edges, high, high + (high - low) / 16})
            continue
        gap, at = max((edges[i + 1] - edges[i], i) for i in range(len(edges) - 1))
        edges.insert(at + 1, edges[at] + gap / 2)
    if not all(a < b for a, b in pairwise(edges)):
        return _around(low)  # closer together than floating point can tell
    return edges


def grid_bits(values: Values) -> int:
    """Return how fine the grid of the sums is: as fine as the range with its headroom allows."""
    largest = float(np.abs(values).max(initial=0.0))
    exponent = math.ceil(math.log2(largest)) if largest > 0 else 0
    return min(40, max(-40, _GRID_BITS - _HEADROOM_BITS - exponent))


def _around(value: float) -> list[float]:
    """Return edges around a constant, which lies in the middle of the innermost bin."""
    step = max(abs(value), 1.0) * 1e-3
    above = [value + step * 2.0**i for i in range(16)]
    below = [value - step * 2.0**i for i in range(15)]
    return sorted([*below, *above])

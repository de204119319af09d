"""What a sketch costs: time per row and feature at three batch sizes, and bytes per feature."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fleet_contract import codec
from fleet_contract.features import INNER_EDGES, NumericFeature, Reduction, Source
from fleet_contract.sketches.numeric import NumericBank
from tests.benchmarks.measurement import Measurement

FEATURES = 50
ROUNDS = 9
# Batch size and the largest share of the naive loop's time. On one row at a time the loop pays a
# call per feature, on large batches it is at its best.
BATCHES = ((1, 0.5), (32, 0.5), (256, 1.1))
ROWS = 2_048


def run() -> list[Measurement]:
    rng = np.random.default_rng(0)
    edges = [float(edge) for edge in np.linspace(-2.5, 2.5, INNER_EDGES)]
    features = [
        NumericFeature(f"f{number}", Source("x", Reduction.COLUMN, number), 16, edges)
        for number in range(FEATURES)
    ]
    bank = NumericBank(features)
    naive = _Naive(edges)
    measurements = []
    for rows, share in BATCHES:
        batches = [rng.normal(size=(rows, FEATURES)) for _ in range(ROWS // rows)]
        per_update: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            per_update[0].append(_time(naive.update, batches))
            per_update[1].append(_time(bank.update, batches))
        reference, value = (
            statistics.median(times) * 1e6 / (ROWS * FEATURES) for times in per_update
        )
        measurements.append(
            Measurement(
                f"sketches.update_batch_{rows}",
                value,
                "us/row/feature",
                "searchsorted and sums per feature",
                reference,
                largest_ratio=share,
            )
        )
    sketches = bank.sketches()
    assert [sketch.bins for sketch in sketches] == naive.bins.tolist()
    size = len(codec.encode_msgpack(sketches)) / FEATURES
    raw = 8.0 * sketches[0].rows
    return [
        *measurements,
        Measurement("sketches.size", size, "bytes/feature", "the values", raw, largest_value=200),
    ]


class _Naive:
    """The same figures, feature by feature."""

    def __init__(self, edges: list[float]) -> None:
        self._edges = np.array(edges)
        self.bins = np.zeros((FEATURES, INNER_EDGES + 1), dtype=np.int64)
        self._sums = np.zeros((FEATURES, 2))
        self._extremes = np.tile([np.inf, -np.inf], (FEATURES, 1))

    def update(self, values: NDArray[np.float64]) -> None:
        for i in range(FEATURES):
            column = values[:, i]
            found = np.searchsorted(self._edges, column, side="right")
            self.bins[i] += np.bincount(found, minlength=INNER_EDGES + 1)
            self._sums[i] += column.sum(), (column * column).sum()
            low, high = self._extremes[i]
            self._extremes[i] = min(low, column.min()), max(high, column.max())


def _time(
    update: Callable[[NDArray[np.float64]], None], batches: list[NDArray[np.float64]]
) -> float:
    started = time.perf_counter()
    for batch in batches:
        update(batch)
    return time.perf_counter() - started

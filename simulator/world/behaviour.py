"""How releases behave in the field: what a device would count in a window.

Decides distributions, not devices: a profile says how outputs, errors and latencies of a release
are spread, at staging and in the field, and draws the integer counts of a window from them.
Predictions on one device are correlated, as they are in reality: each device has its own tilt.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet_contract.features import (
    INNER_EDGES,
    CategoricalFeature,
    FeatureSchema,
    FeatureSet,
    NumericFeature,
    Reduction,
    Source,
)
from fleet_contract.sketches.categorical import CategoricalSketch
from fleet_contract.sketches.features import FeatureSketches
from fleet_contract.sketches.latency import BOUNDS_US, LatencySketch
from fleet_contract.sketches.numeric import BINS, NumericSketch

CLASSES = 10
GRID_BITS = 10
CLASS_SPREAD = 0.3
LATENCY_SPREAD = 0.15
"""Standard deviations, on the logarithmic scale, of what devices see and how fast they are."""

EDGES = [round((i + 1) / (INNER_EDGES + 1), 6) for i in range(INNER_EDGES)]

SCHEMA = FeatureSchema(
    inputs=FeatureSet(),
    outputs=FeatureSet(
        numeric=[
            NumericFeature(
                "top_probability", Source("logits", Reduction.TOP_PROBABILITY), GRID_BITS, EDGES
            )
        ],
        categorical=[
            CategoricalFeature(
                "top_class",
                Source("logits", Reduction.TOP_CLASS),
                [str(number) for number in range(CLASSES)],
            )
        ],
    ),
)
SCHEMA_DIGEST = SCHEMA.digest()
_CENTRES = np.rint((np.arange(BINS) + 0.5) / BINS * 2**GRID_BITS).astype(np.int64)


@dataclass(frozen=True)
class Profile:
    """How one release behaves.

    ``classes`` are the shares of the winning classes, ``confidence`` the mean of the top
    probability, ``error_rate`` the share of failed calls, ``latency_us`` the median latency.
    """

    classes: tuple[float, ...]
    confidence: float
    error_rate: float = 0.0005
    latency_us: int = 2_000


def _shares(values: tuple[float, ...]) -> NDArray[np.float64]:
    shares = np.array(values, dtype=np.float64)
    return np.asarray(shares / shares.sum())


def _confidence_bins(mean: float) -> NDArray[np.float64]:
    centres = (np.arange(BINS) + 0.5) / BINS
    weights = np.exp(-0.5 * ((centres - mean) / 0.08) ** 2)
    return np.asarray(weights / weights.sum())


def _latency_buckets(median_us: int) -> tuple[int, NDArray[np.float64]]:
    """Return the first bucket and the shares of a log-normal latency with a spread of 25%."""
    bounds = np.array(BOUNDS_US, dtype=np.float64)
    keep = np.flatnonzero((bounds > median_us * 0.5) & (bounds < median_us * 2.5))
    weights = np.exp(-0.5 * (np.log(bounds[keep] / median_us) / 0.25) ** 2)
    return int(keep[0]), np.asarray(weights / weights.sum())


class Place:
    """What makes a device unlike others, whatever it runs: what it sees, and how fast it is."""

    def __init__(self, numbers: np.random.Generator) -> None:
        self.classes = np.exp(numbers.normal(0.0, CLASS_SPREAD, CLASSES))
        self.confidence = float(numbers.normal(0.0, 0.01))
        self.latency = float(np.exp(numbers.normal(0.0, LATENCY_SPREAD)))


class Behaviour:
    """One release on one device: draws windows."""

    def __init__(self, profile: Profile, place: Place, numbers: np.random.Generator) -> None:
        self._numbers = numbers
        self._profile = profile
        shares = _shares(profile.classes) * place.classes
        self._classes = shares / shares.sum()
        self._confidence = _confidence_bins(profile.confidence + place.confidence)
        self._first, self._latency = _latency_buckets(int(profile.latency_us * place.latency))

    def draw(self, calls: int) -> tuple[int, FeatureSketches, LatencySketch]:
        """Return errors, output sketches and latencies of this many calls."""
        errors = int(self._numbers.binomial(calls, self._profile.error_rate))
        rows = calls - errors
        return errors, self._outputs(rows), self._latencies(rows)

    def agreements(self, rows: int) -> int:
        """Return how many of these rows a shadow run of this release agrees on with the other."""
        return int(self._numbers.binomial(rows, 0.97))

    def _outputs(self, rows: int) -> FeatureSketches:
        counts = self._numbers.multinomial(rows, self._classes)
        bins = self._numbers.multinomial(rows, self._confidence)
        return outputs_of(counts, bins)

    def _latencies(self, rows: int) -> LatencySketch:
        counts = self._numbers.multinomial(rows, self._latency)
        seen = np.flatnonzero(counts)
        if not len(seen):
            return LatencySketch(0, 0, [])
        low, high = int(seen[0]), int(seen[-1])
        found = counts[low : high + 1]
        uppers = np.array(BOUNDS_US[self._first + low : self._first + high + 1])
        return LatencySketch(int((found * uppers).sum()), self._first + low, found.tolist())


def outputs_of(classes: NDArray[np.int64], bins: NDArray[np.int64]) -> FeatureSketches:
    """Return the sketches with these counts of classes [10] and of confidence bins [32]."""
    rows = int(bins.sum())
    seen = np.flatnonzero(bins)
    low = (float(seen[0]) + 0.5) / BINS if len(seen) else None
    high = (float(seen[-1]) + 0.5) / BINS if len(seen) else None
    numeric = NumericSketch(
        rows,
        0,
        0,
        0,
        0,
        low,
        high,
        int((bins * _CENTRES).sum()),
        int((bins * _CENTRES * _CENTRES).sum()),
        bins.tolist(),
    )
    return FeatureSketches([numeric], [CategoricalSketch([*classes.tolist(), 0])])


def baseline_of(profile: Profile, rows: int = 10_000) -> FeatureSketches:
    """Return what a release with this profile looked like on its baseline data: rounded shares."""
    classes = np.rint(_shares(profile.classes) * rows).astype(np.int64)
    bins = np.rint(_confidence_bins(profile.confidence) * rows).astype(np.int64)
    bins[int(np.argmax(bins))] += int(classes.sum() - bins.sum())
    return outputs_of(classes, bins)

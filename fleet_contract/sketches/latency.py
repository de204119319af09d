"""Latency sketches: logarithmic buckets of microseconds with 2% relative error.

The mapping is DDSketch's (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch
with relative-error guarantees", VLDB 2019), made of integers: bucket bounds grow by (1 + a)/(1 - a)
with a = 0.02, rounded down and by at least one, so that an implementation in any language finds
the same bucket without a logarithm. Merging adds counts and is exact.
"""

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from fleet_contract import limits
from fleet_contract.errors import Reason, Refused

ALPHA = 0.02
LONGEST_US = 1 << 31
"""Longer ones (36 minutes) count as this."""


def _bounds() -> tuple[int, ...]:
    bounds = [1]
    while bounds[-1] < LONGEST_US:
        bounds.append(min(LONGEST_US, max(bounds[-1] + 1, bounds[-1] * 102 // 98)))
    return tuple(bounds)


BOUNDS_US = _bounds()
"""Bucket i holds BOUNDS_US[i - 1] < latency ≤ BOUNDS_US[i]; bucket 0 holds 0 and 1 µs."""


class LatencySketch(msgspec.Struct, frozen=True, array_like=True):
    """Counts of latencies: ``counts[k]`` belongs to bucket ``first + k``; no zeros at the ends."""

    total_us: int
    first: int
    counts: list[int]

    @property
    def count(self) -> int:
        """Number of latencies counted."""
        return sum(self.counts)


EMPTY = LatencySketch(0, 0, [])


def check(sketch: LatencySketch) -> None:
    """Check a sketch from a peer.

    Raises:
        Refused: ``malformed`` if a bucket does not exist, a count is out of range, or the sketch
            is not in its one form.
    """
    if sketch.first < 0 or sketch.first + len(sketch.counts) > len(BOUNDS_US):
        raise Refused(Reason.MALFORMED, "no such latency bucket")
    if min(sketch.counts, default=0) < 0 or sketch.count > limits.ROWS_PER_WINDOW:
        raise Refused(Reason.MALFORMED, "a count of a latency sketch is out of range")
    if not sketch.counts and sketch != EMPTY:
        raise Refused(Reason.MALFORMED, "a latency sketch of nothing is not empty")
    if sketch.counts and not (sketch.counts[0] and sketch.counts[-1]):
        raise Refused(Reason.MALFORMED, "a latency sketch has zeros at its ends")
    if not 0 <= sketch.total_us <= LONGEST_US * sketch.count:
        raise Refused(Reason.MALFORMED, "the sum of a latency sketch is out of range")


def merge(left: LatencySketch, right: LatencySketch) -> LatencySketch:
    """Return the sketch of both together."""
    if not left.counts:
        return right
    if not right.counts:
        return left
    first = min(left.first, right.first)
    last = max(left.first + len(left.counts), right.first + len(right.counts))
    counts = [0] * (last - first)
    for sketch in (left, right):
        for offset, count in enumerate(sketch.counts, start=sketch.first - first):
            counts[offset] += count
    return LatencySketch(left.total_us + right.total_us, first, counts)


def quantile_us(sketch: LatencySketch, share: float) -> float | None:
    """Return the latency below which this share of them lies, within 2%; None for an empty one.

    Args:
        sketch: the sketch.
        share: between 0 and 1.
    """
    if not sketch.counts:
        return None
    rank = share * (sketch.count - 1)
    index, seen = sketch.first, sketch.counts[0]
    while seen <= rank:
        index += 1
        seen += sketch.counts[index - sketch.first]
    high = BOUNDS_US[index]
    low = BOUNDS_US[index - 1] + 1 if index else 1
    return 2.0 * low * high / (low + high)


class LatencyRecorder:
    """Accumulates a latency sketch; not thread-safe."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything counted so far."""
        self._counts: dict[int, int] = {}
        self._total_us = 0

    def add(self, latency_us: int) -> None:
        """Count one latency in microseconds; negative ones count as 0."""
        clipped = min(max(latency_us, 0), LONGEST_US)
        index = bisect_left(BOUNDS_US, clipped)
        self._counts[index] = self._counts.get(index, 0) + 1
        self._total_us += clipped

    def sketch(self) -> LatencySketch:
        """Return what was counted since the last :meth:`clear`."""
        if not self._counts:
            return EMPTY
        first, last = min(self._counts), max(self._counts)
        return LatencySketch(
            self._total_us, first, [self._counts.get(i, 0) for i in range(first, last + 1)]
        )


def of(latencies_us: Sequence[int]) -> LatencySketch:
    """Return the sketch of these latencies in microseconds."""
    recorder = LatencyRecorder()
    for latency in latencies_us:
        recorder.add(latency)
    return recorder.sketch()

"""The recorder: what one release did in one window, at next to no cost for the caller.

Decides what is counted when: a call hands over its arrays and goes on; every few dozen calls one
caller brings the sketches up to date with all of them at once, because a vectorised update of many
rows costs little more than one of a single row. What is sent, and kept until the server has it, is
the shell's business.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet_contract import limits
from fleet_contract.errors import Refused
from fleet_contract.features import FeatureSchema, FeatureSet
from fleet_contract.messages.report import Pairs, Role, Window
from fleet_contract.sketches.features import FeatureBank, FeatureSketches, FeatureValues
from fleet_contract.sketches.latency import LatencyRecorder

Arrays = Mapping[str, NDArray[Any]]
_Held = tuple[dict[str, NDArray[Any]] | FeatureValues, int]
"""A call's copied arrays and their size in bytes, or the features' values already."""

BATCH_CALLS = 64
"""Calls after which the sketches are brought up to date."""
BATCH_BYTES = 256 * 1024
"""The same for bytes."""
LARGE_BYTES = 32 * 1024
"""Arrays of this size are reduced to their features at once: a copy of them would cost more than
what waiting for others saves. One call in four is, which keeps the cost below a tenth of a vision
model's; the sketches say by themselves how many rows they hold."""
_GOLDEN = 0x9E3779B1
"""2**32 over the golden ratio: multiples of it, taken modulo 2**32, fall evenly and in step with no
period that the inputs may have, such as four cameras in turn."""
_MOST = 16
"""Batches that may wait; then a caller waits for the update under way instead of adding to them."""


@dataclass(frozen=True)
class Figures:
    """What a local guard looks at: calls of one release since it became active, and how many of
    them failed.
    """

    release: str
    predictions: int
    errors: int


class _Side:
    """The sketches of the inputs or the outputs, as long as nothing was refused."""

    def __init__(self, features: FeatureSet) -> None:
        self._bank = FeatureBank(features)
        self._tensors = {feature.source.tensor for feature in features.numeric}
        self._tensors |= {feature.source.tensor for feature in features.categorical}
        self._complete = True
        self._large_calls = -1

    def hold(self, arrays: Arrays) -> _Held | None:
        """Return what is needed of a call to count it later; the arrays may change afterwards."""
        if not self._tensors:
            return None
        needed = {name: arrays[name] for name in self._tensors if name in arrays}
        size = sum([array.nbytes for array in needed.values()])
        if size < LARGE_BYTES:
            # Copies: callers reuse their buffers.
            return {name: array.copy() for name, array in needed.items()}, size
        self._large_calls += 1
        if (self._large_calls * _GOLDEN) % 2**32 >= 2**30:
            return None
        try:
            return self._bank.read(needed), 0
        except Refused:
            return {}, 0  # has none of the tensors, and is refused once more when counted

    def count(self, held: list[_Held]) -> None:
        """Bring the sketches up to date."""
        values = [item for item, _ in held if isinstance(item, FeatureValues)]
        try:
            for arrays in _joined([item for item, _ in held if isinstance(item, dict)]):
                values.append(self._bank.read(arrays))
            if values:
                numbers, indices = zip(*values, strict=True)
                self._bank.count(FeatureValues(np.concatenate(numbers), np.concatenate(indices)))
        except Refused:
            # A sketch that misses rows would be read as one of all rows: rather none.
            self._complete = False

    def take(self, *, clear: bool) -> FeatureSketches | None:
        """Return the sketches, None if they miss a row; ``clear`` begins them anew."""
        sketches = self._bank.sketches() if self._complete else None
        if clear:
            self._bank.clear()
            self._complete = True
        return sketches


@dataclass
class _Pending:
    """Calls that are counted but not yet sketched."""

    inputs: list[_Held] = field(default_factory=list)
    outputs: list[_Held] = field(default_factory=list)
    latencies_us: list[int] = field(default_factory=list)
    size_bytes: int = 0


class Recorder:
    """Counts what one release does in one role, window by window. Thread-safe."""

    def __init__(self, schema: FeatureSchema, release: str, role: Role, *, now_ms: int) -> None:
        self._release = release
        self._role = role
        self._schema = schema.digest()
        # A shadow sees a sample of the active one's inputs, which are sketched there.
        self._inputs = _Side(schema.inputs if role is Role.ACTIVE else FeatureSet())
        self._outputs = _Side(schema.outputs)
        self._with_inputs = role is Role.ACTIVE
        self._latency = LatencyRecorder()
        # Counters and pending calls change under _lock, the sketches under _sketching; who takes
        # both takes _sketching first, so that a snapshot holds every call or none of it.
        self._lock = threading.Lock()
        self._sketching = threading.Lock()
        self._pending = _Pending()
        self._start_ms = now_ms
        self._sequence = 0
        self._predictions = self._errors = 0
        self._pairs = Pairs(0, 0, 0)
        self._earlier_predictions = self._earlier_errors = 0

    @property
    def start_ms(self) -> int:
        """When the present window began."""
        return self._start_ms

    def figures(self) -> Figures:
        """Return the counters since the recorder was made."""
        with self._lock:
            return Figures(
                self._release,
                self._earlier_predictions + self._predictions,
                self._earlier_errors + self._errors,
            )

    def succeeded(
        self, inputs: Arrays, outputs: Arrays, latency_us: int, *, pairs: Pairs | None = None
    ) -> None:
        """Count a call that was answered. The arrays may change after this returns."""
        seen, given = self._inputs.hold(inputs), self._outputs.hold(outputs)
        with self._lock:
            if self._predictions >= limits.ROWS_PER_WINDOW:
                return  # the wire holds no more in one window; the next roll ends it
            self._predictions += 1
            if pairs is not None:
                self._pairs = _add(self._pairs, pairs)
            pending = self._pending
            pending.latencies_us.append(latency_us)
            if seen is not None:
                pending.inputs.append(seen)
                pending.size_bytes += seen[1]
            if given is not None:
                pending.outputs.append(given)
                pending.size_bytes += given[1]
            waiting = len(pending.latencies_us)
            fill = max(waiting / BATCH_CALLS, pending.size_bytes / BATCH_BYTES)
        if fill >= 1 and self._sketching.acquire(blocking=fill >= _MOST):
            try:
                self._sketch(self._take())
            finally:
                self._sketching.release()

    def failed(self) -> None:
        """Count a call that was not answered."""
        with self._lock:
            if self._predictions < limits.ROWS_PER_WINDOW:
                self._predictions += 1
                self._errors += 1

    def snapshot(self, now_ms: int) -> Window:
        """Return the window so far, with the next sequence number."""
        return self._window(now_ms, closed=False)

    def roll(self, now_ms: int) -> Window:
        """Close the window, return its last state and begin the next one."""
        return self._window(now_ms, closed=True)

    def _window(self, now_ms: int, *, closed: bool) -> Window:
        with self._sketching:
            with self._lock:
                pending, self._pending = self._pending, _Pending()
                predictions, errors, pairs = self._predictions, self._errors, self._pairs
                if closed:
                    self._earlier_predictions += predictions
                    self._earlier_errors += errors
                    self._predictions = self._errors = 0
                    self._pairs = Pairs(0, 0, 0)
            self._sketch(pending)
            answered = predictions > errors
            inputs, outputs = self._inputs.take(clear=closed), self._outputs.take(clear=closed)
            window = Window(
                release=self._release,
                role=self._role,
                start_ms=self._start_ms,
                length_ms=max(0, now_ms - self._start_ms),
                sequence=self._sequence,
                closed=closed,
                predictions=predictions,
                errors=errors,
                latency=self._latency.sketch(),
                schema=self._schema,
                # An empty window carries no sketches: its counters say all.
                inputs=inputs if self._with_inputs and answered else None,
                outputs=outputs if answered else None,
                pairs=pairs if self._role is Role.SHADOW and pairs.rows else None,
            )
            self._sequence += 1
            if closed:
                # Windows are told apart by their start, even where a clock stands still.
                self._start_ms = max(now_ms, self._start_ms + 1)
                self._sequence = 0
                self._latency.clear()
            return window

    def _take(self) -> _Pending:
        with self._lock:
            pending, self._pending = self._pending, _Pending()
            return pending

    def _sketch(self, pending: _Pending) -> None:
        for latency_us in pending.latencies_us:
            self._latency.add(latency_us)
        self._inputs.count(pending.inputs)
        self._outputs.count(pending.outputs)


def _joined(calls: list[dict[str, NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
    """Return the calls' arrays as few batches: neighbours whose rows have one form together."""
    groups: list[list[dict[str, NDArray[Any]]]] = []
    form: list[tuple[str, tuple[int, ...], str]] | None = None
    for call in calls:
        found = [(name, array.shape[1:], array.dtype.str) for name, array in call.items()]
        if found != form or any(not array.ndim for array in call.values()):
            groups.append([])
            form = found
        groups[-1].append(call)
    return [
        group[0]
        if len(group) == 1
        else {name: np.concatenate([call[name] for call in group]) for name in group[0]}
        for group in groups
    ]


def _add(left: Pairs, right: Pairs) -> Pairs:
    return Pairs(
        left.rows + right.rows, left.agreements + right.agreements, left.slower + right.slower
    )

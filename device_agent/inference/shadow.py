"""Shadow: a candidate answers a sample of what the active release answers, and nobody waits for it.

Decides which inputs are sampled: as many as a share of one processor pays for, none while the
candidate is behind. What the candidate does wrong is counted against it and reaches no caller.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.errors import PredictionError
from device_agent.inference.golden import agreeing
from device_agent.inference.recorder import Recorder
from device_agent.inference.session import ModelSession
from device_agent.inference.tensors import Tensors
from fleet_contract.messages.report import Pairs

CPU_SHARE = 0.15
"""Of one processor, unless told otherwise."""
_SAVED_NS = 1_000_000_000
"""The share of this much idle time is saved up at the most."""
_WAITING = 4
"""Inputs that wait for the candidate at the most; each is a copy."""

_Sample = tuple[Tensors, Tensors, int]


class Shadow:
    """Runs one candidate in a thread of its own until :meth:`stop`."""

    def __init__(
        self,
        session: ModelSession,
        recorder: Recorder,
        *,
        scores: str | None,
        ticks_ns: Callable[[], int],
        cpu_share: float = CPU_SHARE,
    ) -> None:
        """Start the thread.

        Args:
            session: the candidate.
            recorder: counts what it does, with the role of a shadow.
            scores: the output with class scores, where winners are compared; None for no pairs.
            ticks_ns: a monotonic clock.
            cpu_share: of one processor, above 0.
        """
        self._session = session
        self._recorder = recorder
        self._scores = scores
        self._ticks_ns = ticks_ns
        self._share = cpu_share
        self._lock = threading.Lock()
        self._saved_ns = _SAVED_NS * cpu_share
        self._looked_ns = ticks_ns()
        self._samples: queue.Queue[_Sample | None] = queue.Queue(_WAITING)
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()

    @property
    def recorder(self) -> Recorder:
        return self._recorder

    def offer(self, inputs: Mapping[str, NDArray[Any]], outputs: Tensors, latency_us: int) -> bool:
        """Take a copy of what the active release answered, if there is time for it."""
        with self._lock:
            now_ns = self._ticks_ns()
            self._saved_ns = min(
                self._saved_ns + (now_ns - self._looked_ns) * self._share, _SAVED_NS * self._share
            )
            self._looked_ns = now_ns
            if self._saved_ns <= 0 or self._stopping or self._samples.full():
                return False
            copies = {name: array.copy() for name, array in inputs.items()}
            answer = outputs.get(self._scores) if self._scores is not None else None
            kept = {} if answer is None or self._scores is None else {self._scores: answer.copy()}
            # Room is certain: whoever puts samples in holds the lock.
            self._samples.put_nowait((copies, kept, latency_us))
            return True

    def stop(self, *, wait_s: float = 5.0) -> bool:
        """Finish the sample under way, drop the others; False if it did not end in time."""
        with self._lock:
            self._stopping = True
            with contextlib.suppress(queue.Full):  # then the thread is not waiting for one
                self._samples.put_nowait(None)
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while not self._stopping and (sample := self._samples.get()) is not None:
            started_ns = self._ticks_ns()
            try:
                self._compare(sample, started_ns)
            except Exception:  # the candidate's or its outputs' fault: nobody else's to see
                self._recorder.failed()
            spent_ns = self._ticks_ns() - started_ns
            with self._lock:
                self._saved_ns -= spent_ns

    def _compare(self, sample: _Sample, started_ns: int) -> None:
        inputs, expected, active_us = sample
        try:
            self._session.check(inputs)
            outputs = self._session.run(inputs)
        except PredictionError:
            self._recorder.failed()
            return
        latency_us = (self._ticks_ns() - started_ns) // 1000
        pairs = None
        if self._scores is not None and self._scores in expected:
            pairs = _pairs(expected[self._scores], outputs[self._scores], latency_us > active_us)
        self._recorder.succeeded(inputs, outputs, latency_us, pairs=pairs)


def _pairs(active: NDArray[Any], candidate: NDArray[Any], slower: bool) -> Pairs:
    rows = len(active)
    same = int(np.sum(agreeing(active, candidate))) if len(candidate) == rows else 0
    return Pairs(rows, same, rows if slower else 0)

"""A candidate in shadow costs its caller nothing, stays within its budget, and cannot do harm."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from device_agent.errors import InferenceFailed
from device_agent.inference.recorder import Recorder
from device_agent.inference.shadow import Shadow
from fleet_contract.messages.report import Pairs, Role

Until = Callable[[Callable[[], bool]], None]
INPUTS = {"x": np.ones((2, 4), np.float32)}
OUTPUTS = {"y": np.array([[1, 0, 0], [0, 1, 0]], np.float32)}


class Clock:
    """Stands still unless moved; a run of the candidate moves it."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class Candidate:
    def __init__(self, clock: Clock, *, cost_ns: int = 1_000_000) -> None:
        self.clock = clock
        self.cost_ns = cost_ns
        self.runs = 0
        self.seen: list[Any] = []
        self.outputs: dict[str, Any] = OUTPUTS
        self.error: Exception | None = None
        self.open = threading.Event()
        self.open.set()

    def check(self, inputs: Any) -> None:
        pass

    def run(self, inputs: Any) -> Any:
        self.seen.append(inputs["x"])
        self.runs += 1
        assert self.open.wait(60)
        self.clock.now_ns += self.cost_ns
        if self.error is not None:
            raise self.error
        return self.outputs


def start(workshop: Any, candidate: Candidate, *, share: float = 0.1) -> tuple[Shadow, Recorder]:
    recorder = Recorder(workshop.schema, "ab" * 32, Role.SHADOW, now_ms=0)
    shadow = Shadow(candidate, recorder, scores="y", ticks_ns=candidate.clock, cpu_share=share)
    return shadow, recorder


def test_pairs_are_compared_by_winner_and_time(workshop: Any, until: Until) -> None:
    candidate = Candidate(Clock())
    candidate.outputs = {"y": np.array([[9, 0, 0], [9, 0, 0]], np.float32)}
    shadow, recorder = start(workshop, candidate)
    assert shadow.offer(INPUTS, OUTPUTS, 999)
    until(lambda: recorder.figures().predictions == 1)
    assert shadow.offer(INPUTS, OUTPUTS, 1_000)
    until(lambda: recorder.figures().predictions == 2)
    assert shadow.stop(wait_s=60)
    window = recorder.roll(10)
    # Each call: two rows, one of the same winner; 1 ms is slower than 0.999 ms only.
    assert window.pairs == Pairs(4, 2, 2)
    assert window.role is Role.SHADOW
    assert window.outputs is not None


def _counted(recorder: Recorder, predictions: int) -> bool:
    return recorder.figures().predictions == predictions


def test_budget_holds_whatever_is_offered(workshop: Any, until: Until) -> None:
    clock = Clock()
    candidate = Candidate(clock, cost_ns=10_000_000)
    shadow, recorder = start(workshop, candidate, share=0.1)
    accepted = 0
    for _ in range(1_000):  # ten seconds, one offer each 10 ms
        clock.now_ns += 10_000_000
        if shadow.offer(INPUTS, OUTPUTS, 1):
            accepted += 1
            until(partial(_counted, recorder, accepted))
    assert shadow.stop(wait_s=60)
    spent = candidate.runs * candidate.cost_ns / clock.now_ns
    assert 0.05 < spent < 0.13, spent


def test_candidate_that_hangs_takes_no_more_than_a_few_inputs(workshop: Any, until: Until) -> None:
    candidate = Candidate(Clock())
    candidate.open.clear()
    shadow, _ = start(workshop, candidate)
    assert shadow.offer(INPUTS, OUTPUTS, 1)
    until(lambda: candidate.runs == 1)
    taken = sum(shadow.offer(INPUTS, OUTPUTS, 1) for _ in range(100))
    assert taken <= 4
    assert shadow.stop(wait_s=0.05) is False
    assert not shadow.offer(INPUTS, OUTPUTS, 1)
    candidate.open.set()
    assert shadow.stop(wait_s=60) is True
    assert candidate.runs == 1  # what waited was dropped


@pytest.mark.parametrize(
    "error", [InferenceFailed("no"), RuntimeError("a bug"), MemoryError()], ids=str
)
def test_candidate_that_fails_is_counted_and_goes_on(
    workshop: Any, until: Until, error: Exception
) -> None:
    candidate = Candidate(Clock())
    candidate.error = error
    shadow, recorder = start(workshop, candidate)
    assert shadow.offer(INPUTS, OUTPUTS, 1)
    until(lambda: recorder.figures().errors == 1)
    candidate.error = None
    assert shadow.offer(INPUTS, OUTPUTS, 1)
    until(lambda: recorder.figures().predictions == 2)
    assert shadow.stop(wait_s=60)
    assert recorder.figures().errors == 1


def test_candidate_without_the_scores_is_counted_as_failed(workshop: Any, until: Until) -> None:
    candidate = Candidate(Clock())
    candidate.outputs = {"other": np.zeros(2)}
    shadow, recorder = start(workshop, candidate)
    shadow.offer(INPUTS, OUTPUTS, 1)
    until(lambda: recorder.figures().errors == 1)
    assert shadow.stop(wait_s=60)


def test_caller_changes_its_arrays_after_the_offer(workshop: Any, until: Until) -> None:
    candidate = Candidate(Clock())
    candidate.open.clear()
    shadow, recorder = start(workshop, candidate)
    inputs, outputs = {"x": INPUTS["x"].copy()}, {"y": OUTPUTS["y"].copy()}
    shadow.offer(inputs, outputs, 1)
    inputs["x"][:] = 7
    outputs["y"][:] = OUTPUTS["y"][::-1]
    candidate.open.set()
    until(lambda: recorder.figures().predictions == 1)
    assert shadow.stop(wait_s=60)
    assert np.array_equal(candidate.seen[0], INPUTS["x"])
    window = recorder.roll(1)
    assert window.pairs is not None and window.pairs.agreements == 2

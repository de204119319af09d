"""A swap under load loses no prediction, and nobody is answered by a session that is gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

from device_agent.errors import ModelDisabled, NoModel
from device_agent.inference.slot import Slot

Until = Callable[[Callable[[], bool]], None]


class Session:
    """Answers with its number; a call can be held."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.running = 0
        self.open = threading.Event()
        self.open.set()

    def run(self, inputs: Any) -> Any:
        self.running += 1
        assert self.open.wait(60)
        self.running -= 1
        return {"y": np.array([self.number])}


@dataclass(eq=False)
class Built:
    digest: str
    session: Session


def built(number: int) -> Built:
    return Built(f"{number:064d}", Session(number))


def answer(slot: Slot[Built]) -> int:
    seat = slot.enter()
    try:
        return int(seat.built.session.run({})["y"][0])
    finally:
        slot.leave(seat)


def test_no_model_yet() -> None:
    slot: Slot[Built] = Slot()
    with pytest.raises(NoModel):
        answer(slot)
    assert slot.revert_to_standby() is None


def test_disabled_model_answers_nobody_and_comes_back() -> None:
    slot: Slot[Built] = Slot()
    first = built(1)
    slot.activate(first)
    slot.disable()
    with pytest.raises(ModelDisabled):
        answer(slot)
    slot.activate(first)
    assert answer(slot) == 1
    assert slot.standby is None


def test_disabled_before_there_is_a_model() -> None:
    slot: Slot[Built] = Slot()
    slot.disable()
    with pytest.raises(ModelDisabled):
        answer(slot)


def test_revert_needs_no_build_and_goes_both_ways() -> None:
    slot: Slot[Built] = Slot()
    slot.activate(built(1))
    slot.activate(built(2))
    assert answer(slot) == 2
    for expected in (1, 2, 1):
        reverted = slot.revert_to_standby()
        assert reverted is not None and reverted.session.number == expected
        assert answer(slot) == expected


def test_only_two_sessions_are_kept() -> None:
    slot: Slot[Built] = Slot()
    for number in (1, 2, 3):
        slot.activate(built(number))
    assert slot.active is not None and slot.active.session.number == 3
    assert slot.standby is not None and slot.standby.session.number == 2
    slot.drop_standby()
    assert slot.standby is None
    assert answer(slot) == 3


def test_call_in_flight_ends_on_the_session_it_began_on(until: Until) -> None:
    slot: Slot[Built] = Slot()
    old = built(1)
    slot.activate(old)
    old.session.open.clear()
    answers: list[int] = []
    caller = threading.Thread(target=lambda: answers.append(answer(slot)))
    caller.start()
    until(lambda: old.session.running == 1)
    drained: list[bool] = []
    swapper = threading.Thread(target=lambda: drained.append(slot.activate(built(2), drain_s=60)))
    swapper.start()
    until(lambda: slot.active is not None and slot.active.session.number == 2)
    assert answer(slot) == 2  # new calls do not wait for the old one
    assert swapper.is_alive()
    old.session.open.set()
    caller.join(60)
    swapper.join(60)
    assert answers == [1]
    assert drained == [True]


def test_call_that_hangs_does_not_hold_the_swap_for_ever(until: Until) -> None:
    slot: Slot[Built] = Slot()
    old = built(1)
    slot.activate(old)
    old.session.open.clear()
    caller = threading.Thread(target=lambda: answer(slot))
    caller.start()
    until(lambda: old.session.running == 1)
    assert slot.activate(built(2), drain_s=0.05) is False
    assert answer(slot) == 2
    slot.drop_standby(drain_s=0.05)
    old.session.open.set()
    caller.join(60)
    assert not caller.is_alive()


def test_failed_call_leaves_the_slot() -> None:
    slot: Slot[Built] = Slot()
    old = built(1)
    slot.activate(old)

    def fail(inputs: Any) -> Any:
        raise RuntimeError("whatever")

    old.session.run = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        answer(slot)
    assert slot.activate(built(2), drain_s=0) is True


def _all_answered_by(answers: list[list[int]], number: int) -> bool:
    return all(mine and mine[-1] == number for mine in answers)


def test_swaps_under_load_lose_no_prediction(until: Until) -> None:
    slot: Slot[Built] = Slot()
    slot.activate(built(0))
    stop = threading.Event()
    answers: list[list[int]] = [[], []]

    def work(mine: list[int]) -> None:
        while not stop.is_set():
            mine.append(answer(slot))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in answers]
    for thread in threads:
        thread.start()
    for number in range(1, 60):
        assert slot.activate(built(number), drain_s=60)
        until(partial(_all_answered_by, answers, number))
        if number % 3 == 0:
            slot.revert_to_standby(drain_s=60)
            slot.revert_to_standby(drain_s=60)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert answer(slot) == 59
    for mine in answers:
        assert set(range(1, 60)) <= set(mine)

"""Guards a job that is under way: who sees it, who answers for it, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_contract.errors import Reason
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.bench import BenchPoll, BenchResult
from fleet_server.benches.desk import Desk, Order, Stage
from fleet_server.errors import Conflict, NotFound
from fleet_server.releases.laboratory.laboratory import Closed
from fleet_server.releases.timing import Unavailable

DIGEST = "a" * 64
RESULT = BenchResult([], Reason.EXPIRED, "x")
LONG_MS = 60_000


def poll(done: int = 0, refusal: str = "") -> BenchPoll:
    return BenchPoll(Capabilities({}, "x86_64", 0, 0, 0), done, refusal)


class Waiting:
    """A job of device "pi" with number 7, and the thread that waits for it."""

    def __init__(self, timeout_ms: int, stage: Stage = Stage.WAITING) -> None:
        self.desk = Desk()
        self.order = Order("pi", 7, "toy 1.0.0", b"sealed", {DIGEST: Path("file")}, stage)
        self.came: BenchResult | Exception | None = None
        self._timeout_ms = timeout_ms
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()
        while not self.desk._orders and self._thread.is_alive():
            self._thread.join(0.005)

    def _wait(self) -> None:
        try:
            self.came = self.desk.wait(self.order, self._timeout_ms)
        except Exception as error:
            self.came = error

    def outcome(self) -> BenchResult | Exception | None:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.came


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    made = Waiting(LONG_MS)
    yield made
    made.desk.close()
    made.outcome()


def test_job_goes_to_its_device_and_its_result_to_who_waits(waiting: Waiting) -> None:
    desk = waiting.desk
    assert desk.take("other", poll()) is None
    with pytest.raises(NotFound):
        desk.file("pi", DIGEST)  # before it was given
    assert desk.take("pi", poll()) == b"sealed"
    assert desk.file("pi", DIGEST) == Path("file")
    desk.settle(desk.claim("pi", 7), RESULT)
    assert waiting.outcome() == RESULT
    assert desk.take("pi", poll()) is None
    with pytest.raises(NotFound):
        desk.file("pi", DIGEST)


def test_files_and_result_are_the_devices_own(waiting: Waiting) -> None:
    desk = waiting.desk
    desk.take("pi", poll())
    for device, digest in (("other", DIGEST), ("pi", "b" * 64)):
        with pytest.raises(NotFound):
            desk.file(device, digest)
    for device, number in (("other", 7), ("pi", 8)):
        with pytest.raises(NotFound):
            desk.claim(device, number)


def test_result_before_the_job_was_given(waiting: Waiting) -> None:
    with pytest.raises(NotFound):
        waiting.desk.claim("pi", 7)


def test_result_is_taken_once(waiting: Waiting) -> None:
    waiting.desk.take("pi", poll())
    waiting.desk.claim("pi", 7)
    with pytest.raises(Conflict):
        waiting.desk.claim("pi", 7)


def test_job_whose_answer_was_lost_is_given_again(waiting: Waiting) -> None:
    assert waiting.desk.take("pi", poll()) == b"sealed"
    assert waiting.desk.take("pi", poll(done=6)) == b"sealed"


@pytest.mark.parametrize(
    ("again", "why"),
    [
        (poll(done=7), "come back without a result"),
        (poll(refusal="expired: 5 ms ago"), "refused the job (expired: 5 ms ago)"),
    ],
)
def test_device_that_will_not_answer_any_more(waiting: Waiting, again: BenchPoll, why: str) -> None:
    waiting.desk.take("pi", poll())
    assert waiting.desk.take("pi", again) is None
    came = waiting.outcome()
    assert isinstance(came, Unavailable)
    assert why in str(came)


def test_refusal_of_the_job_before_says_nothing_of_this_one(waiting: Waiting) -> None:
    assert waiting.desk.take("pi", poll(refusal="expired: long ago")) == b"sealed"


@pytest.mark.parametrize(("given", "why"), [(True, "gave no result"), (False, "did not ask")])
def test_device_that_dies(given: bool, why: str) -> None:
    waiting = Waiting(1, Stage.GIVEN if given else Stage.WAITING)
    came = waiting.outcome()
    assert isinstance(came, Unavailable)
    assert why in str(came)
    with pytest.raises(NotFound):
        waiting.desk.claim("pi", 7)


def test_second_job_of_one_device(waiting: Waiting) -> None:
    with pytest.raises(Unavailable, match="another job"):
        waiting.desk.wait(Order("pi", 8, "toy 1.0.0", b"", {}), LONG_MS)


def test_server_that_stops(waiting: Waiting) -> None:
    waiting.desk.close()
    assert isinstance(waiting.outcome(), Closed)

"""Where a bench job lies while a device does it: handed over, its files fetched, its result taken.

Decides who may see which job and file, that a result is taken once and from the device that the job
is for, and when a job is given up. It lives in memory: who waits for it is the thread that stages,
in this process, and a server that starts again stages from the beginning. So bench devices ask the
server that stages, and not any other replica.
"""

import threading
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from fleet_contract.messages.bench import BenchPoll, BenchResult
from fleet_server.errors import Conflict, NotFound
from fleet_server.releases.laboratory.laboratory import Closed
from fleet_server.releases.timing import Unavailable

POLL_MS = 15_000
"""How long a question is left open; a device gives an answer that brings nothing up after 20 s."""


class Stage(Enum):
    """How far a job got."""

    WAITING = "waiting"
    GIVEN = "given"
    CLAIMED = "claimed"
    ENDED = "ended"


@dataclass(slots=True)
class Order:
    """One job of one device, sealed; ``files`` maps digests to where they lie."""

    device: str
    number: int
    release: str
    envelope: bytes
    files: dict[str, Path]
    stage: Stage = Stage.WAITING
    result: BenchResult | None = None
    failure: str = ""
    changed: threading.Condition = field(default_factory=threading.Condition)


class Desk:
    """The jobs under way, one for a device at most. Thread-safe.

    Attributes:
        poll_ms: how long a question is left open.
    """

    def __init__(self, *, poll_ms: int = POLL_MS) -> None:
        self.poll_ms = poll_ms
        self._orders: dict[str, Order] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the server stops: questions are not left open any more."""
        return self._closed

    def close(self) -> None:
        """Give up what is under way; whoever waits for it learns that the server stops."""
        self._closed = True
        with self._lock:
            orders = list(self._orders.values())
        for order in orders:
            with order.changed:
                order.changed.notify_all()

    def wait(self, order: Order, timeout_ms: int) -> BenchResult:
        """Offer a job to its device, and return what comes of it.

        Raises:
            Closed: if the server stops meanwhile.
            Unavailable: if the device is at another job, refuses this one, or gives no result in
                time.
        """
        with self._lock:
            if order.device in self._orders:
                raise Unavailable("it is at another job")
            self._orders[order.device] = order
        try:
            with order.changed:
                order.changed.wait_for(
                    lambda: self._closed or order.stage is Stage.ENDED, timeout_ms / 1_000
                )
                given = order.stage is not Stage.WAITING
        finally:
            with self._lock:
                del self._orders[order.device]
        if order.result is not None:
            return order.result
        if self._closed:
            raise Closed
        if order.failure:
            raise Unavailable(order.failure)
        what = "gave no result" if given else "did not ask for the job"
        raise Unavailable(f"it {what} within {timeout_ms // 1_000} s")

    def take(self, device: str, poll: BenchPoll) -> bytes | None:
        """Return the envelope of the job that waits for a device, None if there is none.

        One that asks again after it was given its job has not heard of it, or has refused it, or
        has begun it and is lost; then the job is given up.
        """
        order = self._find(device)
        if order is None:
            return None
        with order.changed:
            if order.stage is Stage.GIVEN and poll.refusal:
                _give_up(order, f"it refused the job ({poll.refusal[:200]})")
            elif order.stage is Stage.GIVEN and poll.done >= order.number:
                _give_up(order, "it began the job and has come back without a result")
            if order.stage not in {Stage.WAITING, Stage.GIVEN}:
                return None
            order.stage = Stage.GIVEN
            return order.envelope

    def file(self, device: str, digest: str) -> Path:
        """Return where a file of a device's own job lies.

        Raises:
            NotFound: if it is of no job of this device.
        """
        order = self._find(device)
        if order is None or order.stage is not Stage.GIVEN or digest not in order.files:
            raise NotFound("no_such_file", "No job of this device has such a file.")
        return order.files[digest]

    def claim(self, device: str, number: int) -> Order:
        """Return a device's own job, to hand in its result: nobody else can from now on.

        Raises:
            NotFound: if this device was given no such job, or it was given up.
            Conflict: if there is a result already.
        """
        order = self._find(device)
        if order is None or order.number != number or order.stage is Stage.WAITING:
            raise NotFound("no_such_job", "This device has no such job, or took too long for it.")
        with order.changed:
            if order.stage is not Stage.GIVEN:
                raise Conflict("result_taken", "The result of this job was taken already.")
            order.stage = Stage.CLAIMED
        return order

    def settle(self, order: Order, result: BenchResult) -> None:
        """Hand a claimed job's result to whoever waits for it."""
        with order.changed:
            order.result, order.stage = result, Stage.ENDED
            order.changed.notify_all()

    def _find(self, device: str) -> Order | None:
        with self._lock:
            return self._orders.get(device)


def _give_up(order: Order, why: str) -> None:
    order.failure, order.stage = why, Stage.ENDED
    order.changed.notify_all()

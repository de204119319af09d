"""Makes the broker agree with the rows of desired state, and keeps it so.

Its only state that matters are the rows: killed at any point and started again, it reads them,
reads the broker back and publishes the difference. Rows are read when a commit was announced
(:meth:`Publisher.wake`), when the broker holds something unexpected, and every few seconds. What
to publish is decided in :mod:`fleet_server.dispatch.agreement`.
"""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import structlog
from sqlalchemy.exc import SQLAlchemyError

from fleet_contract import topics
from fleet_server.clock import Clock
from fleet_server.database import Database
from fleet_server.dispatch.agreement import Agreement, Counts
from fleet_server.dispatch.connection import BrokerAddress, Certified, Connection, Received
from fleet_server.dispatch.service import control_messages

POLL_MS = 5_000
RETRY_MS = 500
"""After a failed reading of the rows."""
EVENTS = 4_096
"""Events between the network thread and the publisher's; a full queue slows the broker down."""

log = structlog.get_logger(__name__)

Event = Callable[[int], None]
"""Called on the publisher's thread with the monotonic time in milliseconds."""


class Publisher:
    """Publishes the control messages of one fleet. Every public method may be called anywhere."""

    def __init__(
        self,
        database: Database,
        fleet: str,
        address: BrokerAddress,
        clock: Clock,
        *,
        poll_ms: int = POLL_MS,
        certified: Certified | None = None,
    ) -> None:
        self._database = database
        self._fleet = fleet
        self._clock = clock
        self._poll_ms = poll_ms
        self._agreement = Agreement()
        self._events: queue.Queue[Event] = queue.Queue(EVENTS)
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._settled = False
        self._poll_at_ms = 0
        self._highest_epoch = -1
        self._connection = Connection(
            address,
            self,
            clock,
            role="publisher",
            filters=topics.control_filters(fleet),
            certified=certified,
        )
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._connection.start()

    def stop(self) -> None:
        """Disconnect and end; what is not published yet is in the rows for the next start."""
        if self._thread.ident is None:
            return  # It was never started.
        self._connection.stop()
        self._stopping.set()
        self._nudge()
        self._thread.join()

    def wake(self) -> None:
        """Say that rows were committed: they are on the wire a few milliseconds later."""
        self._woken.set()
        self._nudge()

    @property
    def ready(self) -> bool:
        """Whether it is connected to the broker and may read back."""
        return self._connection.ready

    @property
    def settled(self) -> bool:
        """Whether the broker was seen to hold all rows known when it last looked."""
        return self._settled and not self._woken.is_set()

    def counts(self) -> Counts:
        """Return what was done since the start."""
        return replace(self._agreement.counts)

    def connected(self, window: int) -> None:
        self._events.put(lambda now_ms: self._agreement.connected(window, now_ms))

    def disconnected(self) -> None:
        self._events.put(lambda _: self._agreement.disconnected())

    def acknowledged(self) -> None:
        self._events.put(lambda _: self._agreement.acknowledged())

    def received(self, message: Received) -> None:
        # Retain As Published: a message without the flag did not change what is retained.
        if message.retain:
            topic, payload = message.topic, message.payload
            self._events.put(lambda now_ms: self._agreement.observed(topic, payload, now_ms))

    def _nudge(self) -> None:
        # When it is full, the thread is at work, and looks at the flags before it waits.
        with suppress(queue.Full):
            self._events.put_nowait(lambda _: None)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception:
                # Whatever it was: a rollback must not wait for somebody to notice.
                log.exception("the publisher failed and goes on")
                self._settled = False
                self._poll_at_ms = 0
                self._stopping.wait(RETRY_MS / 1_000)

    def _turn(self) -> None:
        now_ms = self._clock.monotonic_ms()
        # The rows come first: to a connection that was there before them, all would be published
        # at once, whatever the broker holds.
        if self._highest_epoch < 0 and self._read_rows(everything=True):
            self._poll_at_ms = now_ms + self._poll_ms
        next_ms = min(self._poll_at_ms, self._agreement.next_due_ms() or self._poll_at_ms)
        self._take_events(0 if self._woken.is_set() else max(0, next_ms - now_ms))
        now_ms = self._clock.monotonic_ms()
        everything = now_ms >= self._poll_at_ms or self._agreement.unknown
        if everything or self._woken.is_set() or self._agreement.stale:
            if not self._read_rows(everything):
                self._poll_at_ms = now_ms + RETRY_MS
            elif everything:
                self._poll_at_ms = now_ms + self._poll_ms
        for publication in self._agreement.due(self._clock.monotonic_ms()):
            self._connection.publish(*publication, qos=1, retain=True)
        self._settled = self._agreement.settled

    def _take_events(self, wait_ms: int) -> None:
        try:
            event = self._events.get(timeout=wait_ms / 1_000) if wait_ms else None
            now_ms = self._clock.monotonic_ms()
            if event is not None:
                event(now_ms)
            for _ in range(EVENTS):
                self._events.get_nowait()(now_ms)
        except queue.Empty:
            pass

    def _read_rows(self, everything: bool) -> bool:
        after_epoch = None if everything else self._highest_epoch
        # Before the rows are read: a commit that comes during the reading wakes again.
        self._woken.clear()
        try:
            with self._database.reading() as session:
                messages = control_messages(session, self._fleet, after_epoch=after_epoch)
        except SQLAlchemyError:
            log.exception("the control messages could not be read")
            return False
        self._highest_epoch = max([self._highest_epoch, *(message.epoch for message in messages)])
        self._agreement.want(
            {message.topic: message.payload for message in messages}, complete=everything
        )
        return True

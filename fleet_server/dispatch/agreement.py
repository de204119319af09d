"""What must be published so that the broker holds what it should; decided without I/O.

Level-triggered: what is wanted comes from rows, what is there is read back from the broker, and
nothing else is remembered. A message counts as agreed only when it was read back on this very
connection. The own echo is no change; what someone else put there is, and is replaced, slower
and slower when it happens again and again. Reading rows and talking to the broker is the
publisher's part.
"""

import heapq
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

READ_BACK_MS = 250
"""After a connect, messages of single devices are read back for so long before they are asserted:
repeating thousands that the broker holds would reach every device."""
ECHO_MS = 2_000
"""What was not read back after this time is published again, each time twice as late."""
LONGEST_WAIT_MS = 30_000
FREE_REPAIRS = 3
"""So many repairs of one topic are made at once; the next ones wait ever longer."""
REPAIR_WAIT_MS = 50
LONGEST_REPAIR_WAIT_MS = 5_000
CALM_MS = 10_000
"""A topic that needed no repair for so long starts afresh."""
STRANGERS = 10_000
"""Unknown topics remembered at a time; the rest is found at the next connect."""


class Publication(NamedTuple):
    """A retained message to publish; an empty payload clears the topic."""

    topic: str
    payload: bytes


@dataclass(slots=True)
class Counts:
    """What has been done since the start."""

    published: int = 0
    repaired: int = 0
    cleared: int = 0
    not_read_back: int = 0


@dataclass(slots=True)
class _Topic:
    wanted: bytes
    urgent: bool
    seen: bytes | None = None
    """What the broker was last seen to hold on this connection."""
    sent: bytes | None = None
    """What was published and is not read back yet."""
    queued: bool = False
    attempt: int = 0
    unheard: int = 0
    repairs: int = 0
    repaired_ms: int = 0


class Agreement:
    """Compares what is wanted with what the broker holds. All times are monotonic milliseconds.

    ``stale`` says that something was read back which the rows known here do not explain: rows
    should be read before :meth:`due` is asked; ``unknown`` says that all of them should be.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self.stale = False
        self.unknown = False
        self._topics: dict[str, _Topic] = {}
        self._strangers: dict[str, bytes] = {}
        self._urgent: deque[str] = deque()
        self._bulk: deque[str] = deque()
        self._later: list[tuple[int, str, int]] = []
        self._window = 0
        self._unread = 0
        self._unacknowledged = 0

    def want(self, messages: Mapping[str, bytes], *, complete: bool) -> None:
        """Take in rows, topic → payload; ``complete`` says that there are no others."""
        for topic, payload in messages.items():
            self._want(topic, payload)
        self.stale = False
        if complete:
            self.unknown = False
            strangers, self._strangers = self._strangers, {}
            for topic in [*self._topics, *strangers]:
                if topic not in messages:
                    self._want(topic, b"")
                    self._topics[topic].seen = strangers.get(topic, self._topics[topic].seen)

    def connected(self, window: int, now_ms: int) -> None:
        """Start to assert everything on a new connection that lets ``window`` messages fly."""
        self.disconnected()
        self._window = window
        for name, topic in self._topics.items():
            if topic.urgent:
                self._queue(name, topic)
            else:
                self._wait(name, topic, now_ms + READ_BACK_MS)

    def disconnected(self) -> None:
        """Forget what was seen and sent: the next broker may know nothing of it."""
        self._window = self._unread = self._unacknowledged = 0
        self._urgent.clear()
        self._bulk.clear()
        self._later.clear()
        self._strangers.clear()
        for topic in self._topics.values():
            topic.seen = topic.sent = None
            topic.queued = False

    def acknowledged(self) -> None:
        """Note that the broker acknowledged one publication."""
        self._unacknowledged = max(0, self._unacknowledged - 1)

    def observed(self, name: str, payload: bytes, now_ms: int) -> None:
        """Note that the broker now holds ``payload``, empty if it holds nothing."""
        topic = self._topics.get(name)
        if topic is None:
            self._strange(name, payload)
            return
        topic.seen = payload
        if payload == topic.sent:
            topic.sent = None
            self._unread -= 1
        if payload == topic.wanted:
            topic.unheard = 0
            if not payload and topic.sent is None:
                del self._topics[name]
            return
        # Either the rows have changed, or someone else has written. With a publication of ours
        # still to be read back, that one comes later and stands.
        self.stale = True
        if topic.sent is None and not topic.queued:
            self._repair(name, topic, now_ms)

    def due(self, now_ms: int) -> list[Publication]:
        """Return what to publish now, urgent messages first, as much as may fly."""
        if not self._window:
            return []
        while self._later and self._later[0][0] <= now_ms:
            _, name, attempt = heapq.heappop(self._later)
            topic = self._topics.get(name)
            if topic is not None and topic.attempt == attempt and not _agreed(topic):
                self._give_up(topic)
                self._queue(name, topic)
        publications: list[Publication] = []
        for queue in (self._urgent, self._bulk):
            while queue and self._unacknowledged < self._window:
                # What is not read back holds up the many, never the urgent few.
                if queue is self._bulk and self._unread >= self._window:
                    break
                name = queue.popleft()
                topic = self._topics.get(name)
                if topic is None:
                    continue
                topic.queued = False
                if not _agreed(topic) and topic.sent != topic.wanted:
                    publications.append(self._publish(name, topic, now_ms))
        return publications

    def next_due_ms(self) -> int | None:
        """Return when :meth:`due` should be asked again if nothing happens, None for never."""
        return self._later[0][0] if self._later and self._window else None

    @property
    def settled(self) -> bool:
        """Whether the broker holds all that is wanted, as far as was seen."""
        busy = self._unread or self._urgent or self._bulk or not self._window
        return not busy and all(_agreed(topic) for topic in self._topics.values())

    def _want(self, name: str, payload: bytes) -> None:
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = _Topic(payload, urgent=name.split("/")[3:4] != ["device"])
            topic.seen = self._strangers.pop(name, None)
        elif topic.wanted == payload:
            return
        topic.wanted = payload
        topic.repairs = topic.unheard = 0
        if self._window and not _agreed(topic):
            self._queue(name, topic)

    def _strange(self, name: str, payload: bytes) -> None:
        if not payload:
            self._strangers.pop(name, None)
        elif len(self._strangers) < STRANGERS:
            self._strangers[name] = payload
            self.unknown = True

    def _repair(self, name: str, topic: _Topic, now_ms: int) -> None:
        self.counts.repaired += 1
        if now_ms - topic.repaired_ms > CALM_MS:
            topic.repairs = 0
        topic.repairs += 1
        topic.repaired_ms = now_ms
        if topic.repairs <= FREE_REPAIRS:
            self._queue(name, topic)
        else:
            wait_ms = REPAIR_WAIT_MS << min(topic.repairs - FREE_REPAIRS, 20)
            self._wait(name, topic, now_ms + min(wait_ms, LONGEST_REPAIR_WAIT_MS))

    def _queue(self, name: str, topic: _Topic) -> None:
        if not topic.queued:
            topic.queued = True
            (self._urgent if topic.urgent else self._bulk).append(name)

    def _wait(self, name: str, topic: _Topic, until_ms: int) -> None:
        topic.attempt += 1  # what was scheduled before is void
        heapq.heappush(self._later, (until_ms, name, topic.attempt))

    def _give_up(self, topic: _Topic) -> None:
        if topic.sent is not None:
            topic.sent = None
            topic.unheard += 1
            self._unread -= 1
            self.counts.not_read_back += 1

    def _publish(self, name: str, topic: _Topic, now_ms: int) -> Publication:
        if topic.sent is None:
            self._unread += 1
        topic.sent = topic.wanted
        self._unacknowledged += 1
        self.counts.published += 1
        self.counts.cleared += not topic.wanted
        wait_ms = min(ECHO_MS << min(topic.unheard, 10), LONGEST_WAIT_MS)
        self._wait(name, topic, now_ms + wait_ms)
        return Publication(name, topic.wanted)


def _agreed(topic: _Topic) -> bool:
    return topic.sent is None and topic.seen == topic.wanted

"""Virtual time: one heap of events, and a running digest of all that happened.

Decides the order of events: by time, then by the order in which they were asked for. Time stands
still while an event runs. What an event does is its owner's business.
"""

import hashlib
import heapq
from collections.abc import Callable

Action = Callable[[], object]


class Timer:
    """A handle on a future event, to call it off."""

    __slots__ = ("_action",)

    def __init__(self, action: Action) -> None:
        self._action: Action | None = action

    def cancel(self) -> None:
        """Make sure that the event does not happen."""
        self._action = None

    def fire(self) -> None:
        """Let the event happen, unless it was called off."""
        if self._action is not None:
            self._action()


class Kernel:
    """The clock and the heap of one world; times in milliseconds since 1970."""

    def __init__(self, start_ms: int) -> None:
        self.now_ms = start_ms
        self.events = 0
        self._heap: list[tuple[int, int, Timer]] = []
        self._asked = 0
        self._trace = hashlib.sha256()

    def at(self, time_ms: int, action: Action) -> Timer:
        """Let something happen at a time; one that is past means as soon as possible."""
        timer = Timer(action)
        self._asked += 1
        heapq.heappush(self._heap, (max(time_ms, self.now_ms), self._asked, timer))
        return timer

    def after(self, delay_ms: int, action: Action) -> Timer:
        """Let something happen after a delay."""
        return self.at(self.now_ms + delay_ms, action)

    def run(self, until: Callable[[], bool], limit_ms: int) -> bool:
        """Let time pass until a condition holds or ``limit_ms`` is reached; say which."""
        while not until():
            if not self._heap or self._heap[0][0] > limit_ms:
                return False
            self.now_ms, _, timer = heapq.heappop(self._heap)
            self.events += 1
            timer.fire()
        return True

    def note(self, *facts: object) -> None:
        """Put facts into the trace: two runs with one digest did the same things in one order."""
        self._trace.update(f"{self.now_ms} {facts!r}\n".encode())

    def digest(self) -> str:
        """Return the SHA-256 of the trace so far."""
        return self._trace.hexdigest()

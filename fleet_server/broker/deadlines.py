"""Which connection has to be looked at, and when.

Decides nothing about keep-alive itself: it holds times, lazily. A connection that was heard
from in the meantime is simply entered again, so a received packet costs nothing here.
"""

from __future__ import annotations

import heapq


class Deadlines:
    def __init__(self) -> None:
        self._entries: list[tuple[int, int]] = []

    def add(self, due_ms: int, connection: int) -> None:
        heapq.heappush(self._entries, (due_ms, connection))

    def next_ms(self) -> int | None:
        """The earliest time at which ``take_due`` has something to give."""
        return self._entries[0][0] if self._entries else None

    def take_due(self, now_ms: int) -> list[int]:
        """Removes and returns the connections due at ``now_ms``, those of the past included."""
        due = []
        while self._entries and self._entries[0][0] <= now_ms:
            due.append(heapq.heappop(self._entries)[1])
        return due

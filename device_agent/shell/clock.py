"""The only place of the agent that reads a clock or draws randomness.

Decides what the device's time is: the wall clock as it was read first, counted on by the monotonic
one, so that small corrections move no deadline. A step of a minute or more is an operator's or
NTP's correction of a wrong clock and is followed.
"""

import secrets
import threading
import time
from typing import Protocol

STEP_MS = 60_000


class Clock(Protocol):
    """Time and randomness, as the shell hands them out."""

    def now_ms(self) -> int:
        """The device's time in milliseconds since 1970."""
        ...

    def ticks_ns(self) -> int:
        """Nanoseconds since some start; never goes back. For latencies, durations, deadlines."""
        ...

    def random_bytes(self, count: int) -> bytes:
        """``count`` bytes from a cryptographic source."""
        ...


class SystemClock:
    """The machine's clocks and its cryptographic source of randomness."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offset_ms = self._wall_ms() - self._monotonic_ms()

    def now_ms(self) -> int:
        with self._lock:
            offset_ms = self._wall_ms() - self._monotonic_ms()
            if abs(offset_ms - self._offset_ms) >= STEP_MS:
                self._offset_ms = offset_ms
            return self._monotonic_ms() + self._offset_ms

    def ticks_ns(self) -> int:
        return time.perf_counter_ns()

    def cpu_ns(self) -> int:
        """Nanoseconds that the processor spent on this thread."""
        return time.thread_time_ns()

    def random_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)

    @staticmethod
    def _wall_ms() -> int:
        return time.time_ns() // 1_000_000

    @staticmethod
    def _monotonic_ms() -> int:
        return time.monotonic_ns() // 1_000_000


def share_of(clock: Clock, duration_ms: int) -> int:
    """Return a random part of a duration: what "full jitter" waits."""
    return int.from_bytes(clock.random_bytes(8), "big") * duration_ms >> 64

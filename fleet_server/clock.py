"""The only place of the server that reads a clock or draws randomness.

Everything else gets times as ``now_ms`` and randomness as bytes, so that a decision can be
repeated from what was recorded about it.
"""

import secrets
import time
from typing import Protocol


class Clock(Protocol):
    """Time and randomness, as the server's shell hands them out."""

    def now_ms(self) -> int:
        """Milliseconds since 1970 (UTC); may be set back by an operator or NTP."""
        ...

    def monotonic_ms(self) -> int:
        """Milliseconds since some start; never goes back. For deadlines and durations."""
        ...

    def random_bytes(self, count: int) -> bytes:
        """``count`` bytes from a cryptographic source."""
        ...


class SystemClock:
    """The machine's clock and its cryptographic source of randomness."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_us(self) -> float:
        """Microseconds since some fixed moment, for what takes few of them."""
        return time.perf_counter_ns() / 1000

    def thread_us(self) -> float:
        """Microseconds that this thread spent on a processor; what others do does not count."""
        return time.thread_time_ns() / 1000

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def random_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)

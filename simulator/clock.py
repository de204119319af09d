"""The one place where live fleets and the demo read a clock; the virtual world has its own."""

import time


def now_ms() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def monotonic_s() -> float:
    """Return seconds that never go back."""
    return time.monotonic()


def sleep_s(duration_s: float) -> None:
    """Wait."""
    time.sleep(duration_s)


def process_cpu_s() -> float:
    """Return the processor seconds that this process has used."""
    return time.process_time()

"""Slows down those who guess: a bounded number of failed authentications an address and minute.

Beyond that an address is refused before the database is asked. Credentials that were right a
while ago are let through all the same: behind a proxy everybody has one address, and one wrong
script must not lock the others out. Kept in memory, by each replica for itself.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from fleet_server.errors import TooManyAttempts

FAILURES = 10
WINDOW_MS = 60_000
ADDRESSES = 10_000
KNOWN_GOOD = 10_000


@dataclass(slots=True)
class _Window:
    began_ms: int
    failures: int


class Attempts:
    """Counts failures; times are the monotonic clock's milliseconds. Safe to share by threads."""

    def __init__(self, *, failures: int = FAILURES, window_ms: int = WINDOW_MS) -> None:
        self._failures = failures
        self._window_ms = window_ms
        self._windows: OrderedDict[str, _Window] = OrderedDict()
        self._good: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, address: str, credential: str, now_ms: int) -> None:
        """Let an attempt pass, or not.

        Args:
            address: where it comes from.
            credential: a hash of what is presented.
            now_ms: the monotonic clock.

        Raises:
            TooManyAttempts: if the address failed too often and the credential is not known.
        """
        with self._lock:
            window = self._windows.get(address)
            if window is None or credential in self._good:
                return
            left_ms = window.began_ms + self._window_ms - now_ms
            if left_ms <= 0:
                del self._windows[address]
            elif window.failures >= self._failures:
                raise TooManyAttempts(
                    "too_many_attempts",
                    "Too many wrong credentials came from your address.",
                    f"Wait {-(-left_ms // 1_000)} s, and check the token.",
                )

    def failed(self, address: str, credential: str, now_ms: int) -> None:
        """Count a failure; what was right once is so no more."""
        with self._lock:
            self._good.pop(credential, None)
            window = self._windows.get(address)
            if window is None or now_ms - window.began_ms >= self._window_ms:
                window = self._windows[address] = _Window(now_ms, 0)
            window.failures += 1
            # The oldest go first: an attacker with many addresses costs memory of this bound.
            while len(self._windows) > ADDRESSES:
                self._windows.popitem(last=False)

    def succeeded(self, credential: str) -> None:
        """Remember a credential that is right."""
        with self._lock:
            self._good[credential] = None
            self._good.move_to_end(credential)
            while len(self._good) > KNOWN_GOOD:
                self._good.popitem(last=False)

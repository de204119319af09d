"""Guards from guessing without end, and from one guesser who locks everybody out."""

from __future__ import annotations

import pytest

from fleet_server.access import attempts
from fleet_server.access.attempts import Attempts
from fleet_server.errors import TooManyAttempts


def fail(limit: Attempts, address: str, times: int, now_ms: int = 0) -> None:
    for number in range(times):
        limit.check(address, f"guess-{number}", now_ms)
        limit.failed(address, f"guess-{number}", now_ms)


def test_guesses_without_end() -> None:
    limit = Attempts(failures=3, window_ms=1_000)
    fail(limit, "a", 3)
    with pytest.raises(TooManyAttempts) as refused:
        limit.check("a", "another", 999)
    assert "Wait 1 s" in refused.value.advice
    limit.check("a", "another", 1_000)


def test_guesser_who_locks_the_neighbours_out() -> None:
    limit = Attempts(failures=3, window_ms=1_000)
    limit.succeeded("right")
    fail(limit, "a", 3)
    limit.check("b", "another", 1)
    limit.check("a", "right", 1)


def test_credential_that_was_right_once_and_is_revoked() -> None:
    limit = Attempts(failures=3, window_ms=1_000)
    limit.succeeded("revoked")
    for _ in range(3):
        limit.check("a", "revoked", 1)
        limit.failed("a", "revoked", 1)
    with pytest.raises(TooManyAttempts):
        limit.check("a", "revoked", 1)


def test_attacker_with_many_addresses_eats_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "ADDRESSES", 10)
    monkeypatch.setattr(attempts, "KNOWN_GOOD", 10)
    limit = Attempts(failures=1, window_ms=1_000)
    for number in range(100):
        fail(limit, f"address-{number}", 1)
        limit.succeeded(f"right-{number}")
    assert len(limit._windows) == len(limit._good) == 10
    with pytest.raises(TooManyAttempts):
        limit.check("address-99", "guess", 1)

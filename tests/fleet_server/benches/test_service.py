"""Guards the numbers of jobs, and from devices that were there once."""

from __future__ import annotations

import pytest

from fleet_contract.manifest import Capabilities
from fleet_contract.messages.bench import BenchPoll
from fleet_server.benches import service
from fleet_server.database import Database
from fleet_server.errors import NotFound

NOW_MS = 1_795_000_000_000


def test_number_grows_also_where_clock_or_database_went_back(
    database: Database, capabilities: Capabilities
) -> None:
    def number(done: int, now_ms: int) -> int:
        with database.transaction() as session:
            service.sighted(session, "home", "pi", BenchPoll(capabilities, done), now_ms=now_ms)
            return service.next_number(session, "home", "pi", now_ms=now_ms)

    first = number(0, NOW_MS)
    assert first == NOW_MS
    assert number(0, NOW_MS - 10) == NOW_MS + 1
    assert number(NOW_MS + 100, NOW_MS) == NOW_MS + 101


def test_device_that_left_the_fleet_is_no_bench(
    database: Database, capabilities: Capabilities
) -> None:
    with database.transaction() as session:
        service.sighted(session, "home", "gone", BenchPoll(capabilities, 0), now_ms=NOW_MS)
        assert service.every(session, "home", now_ms=NOW_MS) == []
        assert service.seats(session, "home", now_ms=NOW_MS) == []
        with pytest.raises(NotFound):
            service.next_number(session, "home", "nobody", now_ms=NOW_MS)

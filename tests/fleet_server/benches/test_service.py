"""Guards the numbers of jobs, and from devices that are no benches."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fleet_contract.manifest import Capabilities
from fleet_contract.messages.bench import BenchPoll, BenchResult
from fleet_server.benches import service
from fleet_server.database import Database
from fleet_server.devices import enrolment, stopping
from fleet_server.devices import service as devices
from fleet_server.errors import Forbidden, NotFound
from fleet_server.trust.authority.authority import Authority
from fleet_server.trust.keyring import Keyring
from tests.fleet_server.device_key import DeviceKey

NOW_MS = 1_795_000_000_000


@pytest.fixture
def enrol(
    database: Database, keyring: Keyring, authority: Authority, capabilities: Capabilities
) -> Callable[..., None]:
    """Bring a device in with these labels."""

    def bring(name: str, **labels: str) -> None:
        with database.transaction() as session:
            devices.ensure_default_cohort(session, keyring.fleet)
            stopping.ensure_stop(session, keyring, now_ms=NOW_MS)
            made = enrolment.create_token(
                session,
                keyring,
                server="http://127.0.0.1:1",
                root="7a" * 32,
                labels=labels,
                device=name,
                valid_ms=60_000,
                random_bytes=bytes,
                now_ms=NOW_MS,
            )
            enrolment.enrol(
                session,
                keyring,
                authority,
                DeviceKey().request(made.token, name, capabilities),
                lifetime_hours=24,
                now_ms=NOW_MS,
            )

    return bring


def test_number_grows_also_where_clock_or_database_went_back(
    database: Database, enrol: Callable[..., None], capabilities: Capabilities
) -> None:
    enrol("pi", bench="yes")

    def number(done: int, now_ms: int) -> int:
        with database.transaction() as session:
            service.sighted(session, "home", "pi", BenchPoll(capabilities, done), now_ms=now_ms)
            return service.next_number(session, "home", "pi", now_ms=now_ms)

    assert number(0, NOW_MS) == NOW_MS
    assert number(0, NOW_MS - 10) == NOW_MS + 1
    assert number(NOW_MS + 100, NOW_MS) == NOW_MS + 101


def test_bench_that_asks_no_more_is_not_there(
    database: Database, enrol: Callable[..., None], capabilities: Capabilities
) -> None:
    enrol("pi", bench="yes")
    with database.transaction() as session:
        service.sighted(session, "home", "pi", BenchPoll(capabilities, 0), now_ms=NOW_MS)
        late_ms = NOW_MS + service.THERE_MS
        assert [item.device for item in service.seats(session, "home", now_ms=late_ms - 1)] == [
            "pi"
        ]
        assert service.seats(session, "home", now_ms=late_ms) == []
        assert not service.every(session, "home", now_ms=late_ms)[0].there


def test_bench_that_was_busy_for_long_is_there_for_the_next_job(
    database: Database, enrol: Callable[..., None], capabilities: Capabilities
) -> None:
    enrol("pi", bench="yes")
    later_ms = NOW_MS + 10 * service.THERE_MS
    with database.transaction() as session:
        service.sighted(session, "home", "pi", BenchPoll(capabilities, 0), now_ms=NOW_MS)
        service.record_result(
            *(session, "home", "pi", 1, "toy 1.0.0", BenchResult([])),
            correlation_id="x",
            now_ms=later_ms,
        )
        (found,) = service.every(session, "home", now_ms=later_ms)
        assert (found.there, found.jobs_done) == (True, 1)


@pytest.mark.parametrize("name", ["field-1", "nobody"])
def test_device_that_nobody_made_a_bench(
    database: Database, enrol: Callable[..., None], capabilities: Capabilities, name: str
) -> None:
    enrol("field-1", hardware="pi4")
    with database.transaction() as session:
        with pytest.raises(Forbidden):
            service.sighted(session, "home", name, BenchPoll(capabilities, 0), now_ms=NOW_MS)
        with pytest.raises(NotFound):
            service.next_number(session, "home", name, now_ms=NOW_MS)

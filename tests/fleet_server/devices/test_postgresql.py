"""Guards from promises that only SQLite keeps: the same dangers, with rows locked one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from fleet_contract.messages.presence import Presence
from fleet_contract.messages.progress import ModelProgress, Phase, Progress
from fleet_server.database import Database
from fleet_server.devices import recording, service
from fleet_server.devices.enrolment import Enrolled
from fleet_server.errors import DomainError
from fleet_server.trust.keyring import Keyring

pytestmark = pytest.mark.postgres


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    database = Database(postgres_url)
    database.migrate()
    yield database
    database.close()


def in_parallel(calls: list[Callable[[], Any]]) -> list[Any]:
    outcomes: list[Any] = []
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            outcomes.append(call())
        except DomainError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_token_spent_twice_in_parallel(
    fleet: Database, new_secret: Callable[..., str], spend: Callable[[str, str], Enrolled]
) -> None:
    secret = new_secret()
    outcomes = in_parallel([partial(spend, secret, f"dev-{number}") for number in range(4)])
    assert sum(isinstance(outcome, Enrolled) for outcome in outcomes) == 1
    assert outcomes.count("used_enrolment_token") == 3


def test_name_taken_twice_in_parallel(
    fleet: Database, new_secret: Callable[..., str], spend: Callable[[str, str], Enrolled]
) -> None:
    secrets = [new_secret() for _ in range(4)]
    outcomes = in_parallel([partial(spend, secret, "same") for secret in secrets])
    assert sum(isinstance(outcome, Enrolled) for outcome in outcomes) == 1
    assert outcomes.count("device_exists") == 3


def test_device_that_enrols_while_a_cohort_is_created(
    fleet: Database,
    keyring: Keyring,
    clock: Any,
    new_secret: Callable[..., str],
    spend: Callable[[str, str], Enrolled],
) -> None:
    def create() -> None:
        with fleet.transaction() as session:
            service.create_cohort(
                session, keyring, name="lab", selector={"site": "lab"}, priority=5, now_ms=1
            )

    secrets = [new_secret(site="lab") for _ in range(4)]
    calls = [partial(spend, secret, f"dev-{number}") for number, secret in enumerate(secrets)]
    in_parallel([*calls, create])
    with fleet.reading() as session:
        assert len(service.members(session, "home", "lab")) == 4


def test_what_devices_say_is_stored(
    fleet: Database, new_secret: Callable[..., str], spend: Callable[[str, str], Enrolled]
) -> None:
    spend(new_secret(site="lab"), "dev-1")
    progress = ModelProgress(
        *("detector", "r-1", Phase.FAILED, "", "", ""), 1, 2**62, 2**62, None, "a\x00b"
    )
    with fleet.transaction() as session:
        message = Presence(True, 2**62, "0" * 16, 1, "0.1.0\x00", None, {"detector\x00": "d"})
        recording.record_presence(session, "home", "dev-1", message, 2**60)
        report = Progress("0" * 16, 1, 1, [progress])
        assert recording.record_progress(session, "home", "dev-1", report, 2**60) == 1
    with fleet.reading() as session:
        (found,) = service.members(session, "home", "default")
    assert found.progress["detector"].detail == "ab"
    assert found.active == {"detector": "d"}

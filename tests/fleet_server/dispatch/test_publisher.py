"""Guards that the broker agrees with the rows, whatever happened to either."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pytest

from fleet_contract import topics
from fleet_contract.topics import DeviceChannel
from fleet_server.clock import SystemClock
from fleet_server.database import Database
from fleet_server.dispatch import agreement
from fleet_server.dispatch.connection import BrokerAddress, Received
from fleet_server.dispatch.publisher import POLL_MS, Publisher
from fleet_server.dispatch.service import next_epoch, put_control

FLEET = "home"
ALL = topics.control_filters(FLEET)
CLOCK = SystemClock()
Wait = Callable[[Callable[[], object], str], None]
NEVER_MS = 3_600_000
"""A poll that comes so late has nothing to do with what a test sees."""
DEADLINE_S = 60.0


def _holds(probe: Any, payload: bytes) -> bool:
    return bool(probe.retained().get(directive()) == payload)


def _was_repaired(probe: Any, known: int, topic: str, harm: bytes, right: bytes) -> bool:
    """Whether after the messages known before there came the harm, and in the end what is right."""
    told = [m.payload for m in probe.messages[known:] if m.topic == topic]
    return harm in told and told[-1] == right


def commit(database: Database, *messages: tuple[str, bytes]) -> None:
    with database.transaction() as session:
        for topic, payload in messages:
            epoch = next_epoch(session, FLEET, CLOCK.now_ms())
            put_control(
                session, fleet=FLEET, topic=topic, epoch=epoch, payload=payload, now_ms=epoch
            )


def directive(cohort: str = "canary") -> str:
    return topics.directive(FLEET, cohort, "digits")


def assignment(number: int) -> str:
    return topics.device(FLEET, f"device-{number}", DeviceChannel.ASSIGNMENT)


@pytest.fixture
def make_publisher(broker: Any, database: Database) -> Iterator[Callable[..., Publisher]]:
    made: list[Publisher] = []

    def make(poll_ms: int = POLL_MS) -> Publisher:
        made.append(Publisher(database, FLEET, broker.address, CLOCK, poll_ms=poll_ms))
        made[-1].start()
        return made[-1]

    yield make
    for publisher in made:
        publisher.stop()


def test_rows_committed_while_stopped_are_published(
    database: Database, make_publisher: Any, probe: Any, wait_until: Wait
) -> None:
    rows = {directive(): b"one", topics.stop(FLEET): b"go", assignment(1): b"mine"}
    commit(database, *rows.items())
    make_publisher()
    seen = probe(*ALL)
    wait_until(lambda: seen.retained() == rows, "the rows on the broker")


def test_commit_waits_for_the_next_poll(
    database: Database, make_publisher: Any, probe: Any, wait_until: Wait
) -> None:
    commit(database, *((assignment(i), b"x" * 1_000) for i in range(500)))
    publisher = make_publisher(NEVER_MS)
    wait_until(lambda: publisher.settled, "the broker to agree")
    seen = probe(directive())
    # How fast it is, make bench measures.
    for number in range(20):
        payload = b"directive %d" % number
        commit(database, (directive(), payload))
        publisher.wake()
        wait_until(partial(_holds, seen, payload), "the directive")


@pytest.mark.parametrize("harm", [b"", b"an older directive"], ids=["cleared", "overwritten"])
def test_retained_message_harmed_stays_so_until_the_next_poll(
    harm: bytes, database: Database, make_publisher: Any, probe: Any, wait_until: Wait
) -> None:
    commit(database, (directive(), b"right"), (assignment(1), b"mine"))
    publisher = make_publisher(NEVER_MS)
    wait_until(lambda: publisher.settled, "the broker to agree")
    seen = probe(*ALL)
    wait_until(lambda: len(seen.retained()) == 2, "the retained messages")
    for topic, right in ((directive(), b"right"), (assignment(1), b"mine")):
        known = len(seen.messages)
        seen.publish(topic, harm, retain=True).wait_for_publish(DEADLINE_S)
        wait_until(partial(_was_repaired, seen, known, topic, harm, right), "harm and repair")
    assert publisher.counts().repaired == 2


def test_foreign_topic_is_cleared(
    database: Database, make_publisher: Any, probe: Any, wait_until: Wait
) -> None:
    commit(database, (directive(), b"right"))
    harmful = probe(*ALL)
    harmful.publish(directive("lab"), b"who are you?", retain=True).wait_for_publish(DEADLINE_S)
    publisher = make_publisher()
    wait_until(lambda: publisher.settled, "the broker to agree")
    wait_until(lambda: harmful.retained() == {directive(): b"right"}, "the topic to be cleared")
    harmful.publish(assignment(7), b"nobody's", retain=True).wait_for_publish(DEADLINE_S)
    wait_until(lambda: publisher.counts().cleared == 2, "the second one to be cleared")
    wait_until(lambda: harmful.retained() == {directive(): b"right"}, "the broker to agree again")


def test_message_that_is_not_retained_is_no_reason_to_repair(
    database: Database, make_publisher: Any, probe: Any, wait_until: Wait
) -> None:
    commit(database, (directive(), b"right"))
    publisher = make_publisher()
    wait_until(lambda: publisher.settled, "the broker to agree")
    seen = probe(*ALL)
    seen.publish(directive(), b"replayed", retain=False).wait_for_publish(DEADLINE_S)
    seen.publish(directive(), b"older", retain=True).wait_for_publish(DEADLINE_S)
    wait_until(lambda: publisher.counts().repaired == 1, "the retained one to be repaired")
    wait_until(lambda: publisher.settled, "the broker to agree")
    assert publisher.counts().repaired == 1


def test_broker_restarted_empty_gets_everything_again(
    broker: Any, database: Database, make_publisher: Any, probe: Any, wait_until: Wait
) -> None:
    rows = {directive(): b"right", topics.stop(FLEET): b"go"}
    rows |= {assignment(i): b"mine %d" % i for i in range(300)}
    commit(database, *rows.items())
    publisher = make_publisher()
    wait_until(lambda: publisher.settled, "the broker to agree")
    broker.kill()
    wait_until(lambda: not publisher.ready, "the publisher to notice")
    commit(database, (directive(), b"newer"))
    publisher.wake()
    broker.start()
    seen = probe(*ALL)
    rows[directive()] = b"newer"
    wait_until(lambda: seen.retained() == rows, "everything on the new broker")


def test_restarted_publisher_repeats_nothing_that_the_broker_holds(
    database: Database,
    make_publisher: Any,
    wait_until: Wait,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit(database, *((assignment(i), b"mine %d" % i) for i in range(300)))
    first = make_publisher()
    wait_until(lambda: first.settled, "the broker to agree")
    assert first.counts().published >= 300
    first.stop()
    # However slowly the broker says what it holds.
    monkeypatch.setattr(agreement, "READ_BACK_MS", NEVER_MS)
    second = make_publisher()
    wait_until(lambda: second.settled, "the second publisher to agree")
    assert second.counts().published == 0


def test_connection_that_is_quicker_than_the_rows_repeats_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(database, (assignment(1), b"mine"))
    publisher = Publisher(database, FLEET, BrokerAddress("127.0.0.1", 1), CLOCK)
    published: list[str] = []
    monkeypatch.setattr(
        publisher._connection, "publish", lambda topic, *_, **__: published.append(topic)
    )
    publisher.connected(256)
    publisher._turn()
    assert published == []
    publisher.received(Received(assignment(1), b"mine", 1, True, 1, cast(Any, None)))
    publisher._turn()
    assert publisher.settled and published == []


def test_two_publishers_of_one_database_do_not_fight(
    database: Database, make_publisher: Any, probe: Any, wait_until: Wait
) -> None:
    commit(database, (directive(), b"0"))
    first, second = make_publisher(), make_publisher()
    wait_until(lambda: first.settled and second.settled, "both to agree")
    seen = probe(*ALL)
    for number in range(1, 20):
        commit(database, (directive(), b"%d" % number))
        first.wake()  # the second one learns of it from the broker alone
    wait_until(
        lambda: seen.retained() == {directive(): b"19"} and first.settled and second.settled,
        "both to agree on the last row",
    )
    # On a busy machine what is read back late is published once more.
    counts = [publisher.counts() for publisher in (first, second)]
    published = sum(count.published - count.not_read_back for count in counts)
    assert published <= 4 * 20, "they publish against each other"


KILLED = """
import sys, time
from fleet_server.clock import SystemClock
from fleet_server.database import Database
from fleet_server.dispatch.connection import BrokerAddress
from fleet_server.dispatch import agreement
from fleet_server.dispatch.connection import BrokerAddress, Received
from fleet_server.dispatch.publisher import POLL_MS, Publisher
Publisher(Database(sys.argv[1]), "home", BrokerAddress.parse(sys.argv[2]), SystemClock()).start()
time.sleep(60)
"""


@pytest.mark.slow
def test_killed_while_publishing(
    broker: Any, database: Database, make_publisher: Any, probe: Any, wait_until: Wait
) -> None:
    rows = {assignment(i): b"mine %d" % i for i in range(2_000)} | {directive(): b"one"}
    commit(database, *rows.items())
    seen = probe(*ALL)
    seen.publish(assignment(0), b"older", retain=True).wait_for_publish(DEADLINE_S)
    url = f"mqtt://127.0.0.1:{broker.address.port}"
    command = [sys.executable, "-c", KILLED, str(database.url), url]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        wait_until(lambda: len(seen.messages) > 200, "the first messages")
    finally:
        process.kill()
        process.wait()
    # The decision that comes right before the kill is committed, and announced to nobody.
    commit(database, (directive(), b"two"))
    rows[directive()] = b"two"
    publisher = make_publisher()
    wait_until(lambda: publisher.settled, "the second publisher to agree")
    wait_until(lambda: seen.retained() == rows, "the rows on the broker")


@pytest.mark.slow
def test_publisher_that_fails_once_falls_silent(
    database: Database,
    make_publisher: Any,
    probe: Any,
    wait_until: Wait,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publisher = make_publisher()
    wait_until(lambda: publisher.ready, "the publisher to connect")
    publish = publisher._connection.publish
    failures: list[str] = []

    def failing(topic: str, payload: bytes, *, qos: int, retain: bool) -> bool:
        if not failures:
            failures.append(topic)
            raise RuntimeError("as told")
        return bool(publish(topic, payload, qos=qos, retain=retain))

    monkeypatch.setattr(publisher._connection, "publish", failing)
    commit(database, (directive(), b"roll back"))
    publisher.wake()
    seen = probe(directive())
    wait_until(lambda: seen.retained() == {directive(): b"roll back"}, "the directive")
    assert failures == [directive()]


@pytest.mark.slow
def test_thousands_of_assignments_are_paced(
    database: Database, make_publisher: Any, wait_until: Wait
) -> None:
    commit(database, *((assignment(i), b"x" * 600) for i in range(5_000)))
    begun = time.monotonic()
    publisher = make_publisher()
    wait_until(lambda: publisher.settled, "5,000 assignments on the broker")
    print(f"5,000 assignments in {time.monotonic() - begun:.2f} s")
    # On a busy machine the broker may take its time; what it has said is never published again.
    counts = publisher.counts()
    assert counts.published - counts.not_read_back <= 5_000
    assert counts.repaired == 0

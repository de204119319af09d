"""Guards that nothing a device sends is acknowledged before it is committed, or stops the rest."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlmodel import Session

from fleet_contract import codec, topics
from fleet_contract.messages.presence import Presence
from fleet_contract.messages.progress import Progress
from fleet_contract.messages.report import Report, Role, Window, WindowAck, read_ack
from fleet_contract.sketches import latency
from fleet_contract.topics import DeviceChannel
from fleet_server.clock import SystemClock
from fleet_server.database import Database
from fleet_server.dispatch.inbound import DeviceAck, Inbound
from fleet_server.dispatch.ingest import Ingest
from fleet_server.telemetry import service as telemetry

FLEET = "home"
BOOT = "00112233aabbccdd"
RELEASE = "ab" * 32
DEADLINE_S = 60.0
Wait = Callable[[Callable[[], object], str], None]


def progress(sequence: int) -> bytes:
    return codec.encode_msgpack(Progress(BOOT, 1, sequence, []))


def window(start_ms: int, sequence: int) -> Window:
    return Window(
        *(RELEASE, Role.ACTIVE, start_ms, 1_000, sequence, False, sequence, 0),
        *(latency.EMPTY, "cd" * 32, None, None, None),
    )


def report(*windows: Window) -> bytes:
    return codec.encode_msgpack(Report(BOOT, list(windows)))


def progress_topic(device: str = "device-1") -> str:
    return topics.device(FLEET, device, DeviceChannel.PROGRESS)


REPORTS = topics.report(FLEET, "device-1", "digits")
ACKS = topics.device_filter(FLEET, DeviceChannel.ACK)


class Recorder:
    """Handlers that count rows in a table, and what they were called with."""

    def __init__(self) -> None:
        self.calls: list[list[Inbound]] = []
        self.fail_for = ""
        self.broken: Exception | None = None
        self.in_hand = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def record(
        self, session: Session, inbound: Sequence[Inbound], now_ms: int
    ) -> Sequence[DeviceAck]:
        if self.broken is not None:
            raise self.broken
        self.in_hand = len(inbound)
        assert self.may_go_on.wait(DEADLINE_S)
        acks = []
        for item in inbound:
            if item.device == self.fail_for:
                raise ZeroDivisionError(item.device)
            assert isinstance(item.message, Progress)
            sequence = item.message.sequence
            insert = text("INSERT OR IGNORE INTO seen VALUES (:device, :sequence)")
            values = {"device": item.device, "sequence": sequence}
            session.connection().execute(insert, values)
            acks.append(DeviceAck(item.device, item.message.session, progress=sequence))
        self.calls.append(list(inbound))
        return acks

    def presence(
        self, session: Session, inbound: Sequence[Inbound], now_ms: int
    ) -> Sequence[DeviceAck]:
        self.calls.append(list(inbound))
        return []


def reports(session: Session, inbound: Sequence[Inbound], now_ms: int) -> Sequence[DeviceAck]:
    return telemetry.record_reports(session, inbound, now_ms, schema_of=lambda _, __: None)


@pytest.fixture
def recorder(database: Database) -> Recorder:
    with database.transaction() as session:
        create = "CREATE TABLE seen (device TEXT, sequence INTEGER, PRIMARY KEY (device, sequence))"
        session.connection().execute(text(create))
    return Recorder()


@pytest.fixture
def ingest(
    broker: Any, database: Database, recorder: Recorder, wait_until: Wait
) -> Iterator[Ingest]:
    handlers = {
        DeviceChannel.PRESENCE: recorder.presence,
        DeviceChannel.PROGRESS: recorder.record,
        DeviceChannel.REPORT: reports,
    }
    made = Ingest(database, FLEET, broker.address, SystemClock(), handlers)
    made.start()
    wait_until(lambda: made.ready, "ingest to subscribe")
    yield made
    made.stop()


def rows(database: Database) -> int:
    with database.reading() as session:
        count: int = session.connection().execute(text("SELECT count(*) FROM seen")).scalar_one()
        return count


def acks(probe: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for message in list(probe.messages):
        device = topics.read_device(message.topic).device
        found[device] = max(found.get(device, -1), read_ack(message.payload).progress)
    return found


def test_committed_messages_are_acknowledged_to_the_device(
    ingest: Ingest, database: Database, recorder: Recorder, probe: Any, wait_until: Wait
) -> None:
    device = probe(ACKS)
    recorder.may_go_on.clear()
    for sequence in range(300):
        device.publish(progress_topic(f"device-{sequence % 3}"), progress(sequence))
    wait_until(lambda: recorder.in_hand + ingest.counts().waiting == 300, "all to have arrived")
    recorder.may_go_on.set()
    wait_until(lambda: sum(acks(device).values()) == 297 + 298 + 299, "the acknowledgements")
    assert rows(database) == 300
    counts = ingest.counts()
    assert counts.messages == 300
    assert counts.batches <= 2, "messages are not batched"
    assert all(not message.retain for message in device.messages)


def test_windows_are_acknowledged_up_to_the_committed_sequence(
    ingest: Ingest, database: Database, probe: Any, wait_until: Wait
) -> None:
    device = probe(ACKS)
    device.publish(REPORTS, report(window(0, 2), window(1_000, 1)))
    device.publish(REPORTS, report(window(0, 1)))

    def heard() -> set[WindowAck]:
        return {w for message in device.messages for w in read_ack(message.payload).windows}

    wanted = {
        WindowAck("digits", RELEASE, Role.ACTIVE, 0, 2),
        WindowAck("digits", RELEASE, Role.ACTIVE, 1_000, 1),
    }
    wait_until(lambda: wanted <= heard(), "the windows' acknowledgement")
    with database.reading() as session:
        stored = telemetry.windows(session, FLEET, "digits")
    assert [(item.window.start_ms, item.window.sequence) for item in stored] == [(0, 2), (1_000, 1)]


def test_nothing_is_acknowledged_while_the_database_is_locked(
    ingest: Ingest,
    database: Database,
    recorder: Recorder,
    probe: Any,
    wait_until: Wait,
) -> None:
    device = probe(ACKS)
    recorder.broken = OperationalError("INSERT", {}, sqlite3.OperationalError("locked"))
    published = [device.publish(progress_topic(), progress(sequence)) for sequence in range(50)]
    for info in published:
        info.wait_for_publish(DEADLINE_S)
    wait_until(lambda: ingest.counts().retries >= 2, "two attempts")
    assert not device.messages
    assert rows(database) == 0
    assert ingest.counts().messages == 0
    recorder.broken = None
    wait_until(lambda: acks(device) == {"device-1": 49}, "the acknowledgement after the lock")
    assert rows(database) == 50


def test_database_really_locked_by_another_process(
    broker: Any, tmp_path: Path, database: Database, probe: Any, ingest: Ingest, wait_until: Wait
) -> None:
    device = probe(ACKS)
    other = sqlite3.connect(tmp_path / "fleet.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    device.publish(progress_topic(), progress(7)).wait_for_publish(DEADLINE_S)
    assert not threading.Event().wait(0.3)
    assert not device.messages
    other.execute("ROLLBACK")
    other.close()
    wait_until(lambda: acks(device) == {"device-1": 7}, "the acknowledgement after the lock")


def test_poison_messages_are_dropped_and_the_rest_is_stored(
    ingest: Ingest, database: Database, recorder: Recorder, probe: Any, wait_until: Wait
) -> None:
    recorder.fail_for = "poison"
    device = probe(ACKS)
    for sequence in range(40):
        device.publish(progress_topic(), progress(sequence))
        if sequence % 8 == 0:
            device.publish(progress_topic(), b"\xc1 no document")
            device.publish(progress_topic("poison"), progress(sequence))
            device.publish(f"fleet/v1/{FLEET}/device/NO_NAME/progress", progress(sequence))
            device.publish(progress_topic(), b"x" * 70_000)
            device.publish(REPORTS, progress(sequence))
    wait_until(lambda: acks(device) == {"device-1": 39}, "the good ones to be acknowledged")
    wait_until(lambda: sum(ingest.counts().rejected.values()) == 25, "the bad ones to be counted")
    assert ingest.counts().rejected == {"malformed": 10, "handler": 5, "topic": 5, "too_large": 5}
    assert rows(database) == 40


def test_doubled_messages_are_stored_once(
    ingest: Ingest, database: Database, probe: Any, wait_until: Wait
) -> None:
    device = probe(ACKS)
    for _ in range(3):
        for sequence in range(20):
            device.publish(progress_topic(), progress(sequence))
    wait_until(lambda: ingest.counts().messages == 60, "all messages")
    assert rows(database) == 20


def test_presence_retained_before_the_server_started_is_ingested(
    broker: Any, database: Database, recorder: Recorder, probe: Any, wait_until: Wait
) -> None:
    topic = topics.device(FLEET, "device-1", DeviceChannel.PRESENCE)
    birth = Presence(True, 1, BOOT, 1, "0.1.0", None, {})
    device = probe()
    device.publish(topic, codec.encode_msgpack(birth), retain=True).wait_for_publish(DEADLINE_S)
    handlers = {DeviceChannel.PRESENCE: recorder.presence}
    ingest = Ingest(database, FLEET, broker.address, SystemClock(), handlers)
    ingest.start()
    try:
        wait_until(lambda: recorder.calls, "the presence")
        assert [item.message for item in recorder.calls[0]] == [birth]
        # A presence that is cleared is no fault.
        device.publish(topic, b"", retain=True).wait_for_publish(DEADLINE_S)
        device.publish(topic, codec.encode_msgpack(birth), retain=True).wait_for_publish(DEADLINE_S)
        wait_until(lambda: len(recorder.calls) >= 2, "the presence again")
        assert not ingest.counts().rejected
    finally:
        ingest.stop()


def test_broker_restart_is_survived(
    broker: Any, ingest: Ingest, database: Database, probe: Any, wait_until: Wait
) -> None:
    broker.kill()
    wait_until(lambda: not ingest.ready, "ingest to notice")
    broker.start()
    wait_until(lambda: ingest.ready, "ingest to come back")
    device = probe(ACKS)
    device.publish(progress_topic(), progress(3))
    wait_until(lambda: acks(device) == {"device-1": 3}, "the acknowledgement")


def test_stop_ends_while_the_database_fails(
    broker: Any, database: Database, recorder: Recorder, probe: Any, wait_until: Wait
) -> None:
    recorder.broken = OperationalError("INSERT", {}, sqlite3.OperationalError("disk I/O error"))
    handlers = {DeviceChannel.PROGRESS: recorder.record}
    ingest = Ingest(database, FLEET, broker.address, SystemClock(), handlers)
    ingest.start()
    wait_until(lambda: ingest.ready, "ingest to subscribe")
    device = probe(ACKS)
    for sequence in range(3_000):
        device.publish(progress_topic(), progress(sequence), qos=sequence % 2)
    wait_until(lambda: ingest.counts().waiting >= 500, "the queue to fill up")
    ender = threading.Thread(target=ingest.stop)
    ender.start()
    ender.join(DEADLINE_S)
    assert not ender.is_alive()
    assert not device.messages

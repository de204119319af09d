"""Guards that lost, late, doubled and reordered reports leave the same figures behind."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import Session

from fleet_contract.features import (
    INNER_EDGES,
    CategoricalFeature,
    FeatureSchema,
    FeatureSet,
    NumericFeature,
    Reduction,
    Source,
)
from fleet_contract.messages.report import Pairs, Report, Role, Window
from fleet_contract.sketches import latency
from fleet_contract.sketches.features import FeatureBank
from fleet_contract.topics import DeviceChannel
from fleet_server.database import Database
from fleet_server.dispatch.inbound import Inbound
from fleet_server.telemetry import service
from fleet_server.telemetry.service import StoredWindow

FLEET = "home"
MODEL = "digits"
BOOTS = ["00" * 8, "11" * 8]
RELEASES = ["ab" * 32, "cd" * 32]
SCHEMA = FeatureSchema(
    FeatureSet(
        numeric=[
            NumericFeature(
                "brightness",
                Source("image", Reduction.MEAN),
                10,
                np.linspace(-1, 1, INNER_EDGES).tolist(),
            )
        ]
    ),
    FeatureSet(
        categorical=[
            CategoricalFeature("winner", Source("scores", Reduction.TOP_CLASS), ["0", "1"])
        ]
    ),
)


def window(
    start_ms: int, sequence: int, *, release: str = RELEASES[0], role: Role = Role.ACTIVE
) -> Window:
    """Cumulative: the state follows from the sequence."""
    inputs, outputs = FeatureBank(SCHEMA.inputs), FeatureBank(SCHEMA.outputs)
    inputs.update({"image": np.linspace(-1, 1, 4 * (sequence + 1)).reshape(-1, 4)})
    outputs.update({"scores": np.eye(2)[np.arange(sequence + 1) % 2]})
    return Window(
        *(release, role, start_ms, 1_000 * sequence, sequence, sequence == 3),
        *(sequence + 1, sequence, latency.of([100 * i for i in range(sequence + 1)])),
        *(SCHEMA.digest(), inputs.sketches(), outputs.sketches()),
        Pairs(sequence, sequence, 0) if role is Role.SHADOW else None,
    )


def inbound(
    *windows: Window, device: str = "device-1", boot: str = BOOTS[0], at_ms: int = 1_000
) -> Inbound:
    report = Report(boot, list(windows))
    return Inbound(FLEET, device, DeviceChannel.REPORT, MODEL, report, at_ms)


def record(database: Database, messages: Sequence[Inbound]) -> None:
    with database.transaction() as session:
        service.record_reports(session, messages, 0, schema_of=lambda _, __: SCHEMA)


def stored(database: Database) -> list[StoredWindow]:
    with database.reading() as session:
        return service.windows(session, FLEET, MODEL)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def any_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    if request.param == "sqlite":
        yield request.getfixturevalue("database")
        return
    made = Database(request.getfixturevalue("postgres_url"))
    made.migrate()
    yield made
    made.close()


def figures(database: Database) -> list[tuple[str, str, Window]]:
    return [(item.device, item.session, item.window) for item in stored(database)]


messages = st.builds(
    lambda device, boot, start_ms, sequence, release, role: inbound(
        window(start_ms, sequence, release=release, role=role), device=device, boot=boot
    ),
    st.sampled_from(["device-1", "device-2"]),
    st.sampled_from(BOOTS),
    st.sampled_from([0, 10_000]),
    st.integers(0, 3),
    st.sampled_from(RELEASES),
    st.sampled_from(Role),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data(), sent=st.lists(messages, min_size=1, max_size=8))
def test_any_order_and_duplication_gives_the_same_table(
    data: st.DataObject, sent: list[Inbound], database: Database
) -> None:
    again = data.draw(st.lists(st.sampled_from(sent), max_size=6))
    mixed = data.draw(st.permutations([*sent, *again]))
    cut = data.draw(st.integers(0, len(mixed)))

    def deliver(fleet: str, batches: list[list[Inbound]]) -> list[tuple[str, str, Window]]:
        with database.transaction() as session:
            for batch in batches:
                renamed = [replace(message, fleet=fleet) for message in batch]
                service.record_reports(session, renamed, 0, schema_of=lambda _, __: SCHEMA)
            kept = service.windows(session, fleet, MODEL)
            session.rollback()
        return [(item.device, item.session, item.window) for item in kept]

    in_disorder = deliver("disorder", [mixed[:cut], mixed[cut:]])
    assert in_disorder == deliver("order", [[message] for message in sent])


def test_late_window_does_not_undo_a_newer_state(any_database: Database) -> None:
    record(any_database, [inbound(window(0, 2), at_ms=10)])
    record(any_database, [inbound(window(0, 1), at_ms=20), inbound(window(0, 2), at_ms=30)])
    [kept] = stored(any_database)
    assert kept.window == window(0, 2)
    assert (kept.received_ms, kept.updated_ms) == (10, 10)
    record(any_database, [inbound(window(0, 3), at_ms=40)])
    [kept] = stored(any_database)
    assert kept.window == window(0, 3)
    assert (kept.received_ms, kept.updated_ms) == (10, 40)


def test_one_batch_with_a_window_twice_and_out_of_order(any_database: Database) -> None:
    batch = [
        inbound(window(0, 3), window(0, 1), at_ms=20),
        inbound(window(0, 2), window(500, 0), at_ms=10),
        inbound(window(0, 3), at_ms=30),
    ]
    record(any_database, batch)
    assert figures(any_database) == [
        ("device-1", BOOTS[0], window(0, 3)),
        ("device-1", BOOTS[0], window(500, 0)),
    ]
    assert stored(any_database)[0].received_ms == 10


def test_sketches_of_another_schema_are_dropped_and_counters_kept(database: Database) -> None:
    other = FeatureSchema(SCHEMA.outputs, SCHEMA.outputs)
    with database.transaction() as session:
        service.record_reports(session, [inbound(window(0, 1))], 0, schema_of=lambda _, __: other)
    [kept] = stored(database)
    assert kept.window.inputs is None
    assert kept.window.outputs is None
    assert (kept.window.predictions, kept.window.errors) == (2, 1)


def test_forged_sketch_never_reaches_a_gate(database: Database) -> None:
    forged = window(0, 1)
    assert forged.inputs is not None
    forged.inputs.numeric[0].bins[0] = -1_000_000
    record(database, [inbound(forged)])
    assert stored(database)[0].window.inputs is None


def test_schema_is_asked_for_once_a_batch(database: Database) -> None:
    asked: list[str] = []

    def schema_of(session: Session, digest: str) -> FeatureSchema:
        asked.append(digest)
        return SCHEMA

    with database.transaction() as session:
        batch = [inbound(window(start_ms, 1)) for start_ms in range(20)]
        service.record_reports(session, batch, 0, schema_of=schema_of)
    assert asked == [RELEASES[0]]


def test_windows_are_filtered_by_arrival_and_device(database: Database) -> None:
    for number in range(4):
        record(
            database,
            [inbound(window(number, 1), device=f"device-{number}", at_ms=100 * number)],
        )
    with database.reading() as session:
        late = service.windows(session, FLEET, MODEL, since_ms=200)
        named = service.windows(session, FLEET, MODEL, devices={"device-0", "device-3"})
        assert service.windows(session, "other", MODEL) == []
        assert service.last_report_ms(session, FLEET, MODEL) == {
            f"device-{number}": 100 * number for number in range(4)
        }
        [newest] = service.newest_windows(session, FLEET, "device-3", model=MODEL, count=5)
    assert [item.device for item in late] == ["device-2", "device-3"]
    assert [item.device for item in named] == ["device-0", "device-3"]
    assert newest.window.start_ms == 3


@pytest.mark.slow
def test_full_batch_is_stored_in_bulk(database: Database) -> None:
    batch = [inbound(window(i, i % 4), device=f"device-{i % 50}") for i in range(500)]
    # What this thread computes, however long it has to wait for a processor or a disk.
    begun = time.thread_time()
    record(database, batch)
    record(database, batch)
    took_s = time.thread_time() - begun
    print(f"500 reports: {took_s * 500:.0f} ms a batch")
    assert len(stored(database)) == 500
    assert took_s < 5

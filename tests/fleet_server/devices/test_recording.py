"""Guards from late wills, replayed progress, hostile values and strangers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet_contract.errors import Reason, Refused
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.presence import Presence
from fleet_contract.messages.progress import ModelProgress, Phase, Progress, Refusal
from fleet_contract.topics import DeviceChannel
from fleet_server.database import Database
from fleet_server.devices import recording, service, state_repository
from fleet_server.devices.enrolment import Enrolled
from fleet_server.devices.service import DeviceView
from fleet_server.dispatch.inbound import DeviceAck, Inbound

Enrol = Callable[..., Enrolled]
SESSION, LATER_SESSION = "0" * 16, "1" * 16


def presence(
    online: bool, birth: int, capabilities: Capabilities | None = None, **active: str
) -> Presence:
    return Presence(online, birth, SESSION, 1, "0.1.0", capabilities, active)


def progress(
    boot: int,
    sequence: int,
    phase: Phase = Phase.SUCCEEDED,
    session: str = SESSION,
    refusals: list[Refusal] | None = None,
    **changed: Any,
) -> Progress:
    model: dict[str, Any] = {
        "model": "detector",
        "rollout": "r-1",
        "phase": phase,
        "target": "a" * 64,
        "active": "a" * 64,
        "standby": "",
        "generation": 1,
        "epoch": 5,
        "changed_ms": 17,
    } | changed
    return Progress(session, boot, sequence, [ModelProgress(**model)], refusals or [])


def view(fleet: Database, name: str = "dev-1") -> DeviceView:
    with fleet.reading() as session:
        return service.device(session, "home", name)


def record(fleet: Database, message: Presence | Progress, now_ms: int = 100) -> Any:
    with fleet.transaction() as session:
        if isinstance(message, Presence):
            return recording.record_presence(session, "home", "dev-1", message, now_ms)
        return recording.record_progress(session, "home", "dev-1", message, now_ms)


def inbound(device: str, message: Presence | Progress) -> Inbound:
    channel = DeviceChannel.PRESENCE if isinstance(message, Presence) else DeviceChannel.PROGRESS
    return Inbound("home", device, channel, "", message, 100)


def test_old_will_makes_a_device_look_gone(fleet: Database, enrol: Enrol) -> None:
    enrol("dev-1")
    record(fleet, presence(True, 7), now_ms=100)
    record(fleet, presence(True, 8, detector="d" * 64), now_ms=200)
    assert record(fleet, presence(False, 7), now_ms=300) is False
    found = view(fleet)
    assert (found.online, found.last_seen_ms, found.active) == (True, 200, {"detector": "d" * 64})
    assert record(fleet, presence(False, 8), now_ms=400) is True
    assert not view(fleet).online


def test_presence_in_another_order_ends_elsewhere(fleet: Database, enrol: Enrol) -> None:
    messages = [presence(True, 1), presence(False, 1), presence(True, 2), presence(False, 2)]
    for number, order in enumerate(permutations(messages)):
        name = f"dev-{number:02d}"
        enrol(name)
        with fleet.transaction() as session:
            for message in order:
                recording.record_presence(session, "home", name, message, 100)
        assert not view(fleet, name).online


def test_retained_presence_that_comes_again_counts_as_a_sign_of_life(
    fleet: Database, enrol: Enrol
) -> None:
    enrol("dev-1")
    record(fleet, presence(True, 1), now_ms=100)
    record(fleet, presence(False, 1), now_ms=200)
    record(fleet, presence(False, 1), now_ms=90_000)
    assert view(fleet).last_seen_ms == 200


def test_device_that_was_upgraded_offers_what_it_offered_before(
    fleet: Database, enrol: Enrol, capabilities: Capabilities
) -> None:
    enrol("dev-1")
    newer = Capabilities({"onnxruntime": "1.40.0"}, "aarch64", 30, 14, 1)
    assert view(fleet).capabilities == capabilities
    record(fleet, presence(True, 1, newer))
    assert view(fleet).capabilities == newer


def test_progress_that_is_replayed(fleet: Database, enrol: Enrol) -> None:
    enrol("dev-1")
    assert record(fleet, progress(1, 1, Phase.DOWNLOADING)) == 1
    assert record(fleet, progress(1, 2, Phase.SUCCEEDED)) == 2
    # The old one is answered with what is committed, so that the device stops repeating it.
    assert record(fleet, progress(1, 1, Phase.DOWNLOADING)) == 2
    assert record(fleet, progress(1, 2, Phase.FAILED)) == 2
    assert view(fleet).progress["detector"].phase is Phase.SUCCEEDED


def test_progress_of_a_boot_before_the_last_one(fleet: Database, enrol: Enrol) -> None:
    enrol("dev-1")
    record(fleet, progress(1, 900, Phase.DOWNLOADING))
    assert record(fleet, progress(2, 0, Phase.SOAKING, session=LATER_SESSION)) == 0
    assert record(fleet, progress(1, 901, Phase.FAILED)) is None
    assert view(fleet).progress["detector"].phase is Phase.SOAKING


@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    order=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=12),
    number=st.uuids(),
)
def test_highest_progress_loses(
    fleet: Database, enrol: Enrol, order: list[tuple[int, int]], number: Any
) -> None:
    name = f"dev-{number.hex}"
    if name in {found.name for found in _all(fleet)}:
        return
    enrol(name)
    with fleet.transaction() as session:
        for boot, sequence in order:
            message = progress(boot, sequence, session=f"{boot:016x}", epoch=boot * 10 + sequence)
            committed = recording.record_progress(session, "home", name, message, 1)
            assert committed is None or committed >= sequence
    boot, sequence = max(order)
    assert view(fleet, name).progress["detector"].epoch == boot * 10 + sequence


def _all(fleet: Database) -> list[DeviceView]:
    with fleet.reading() as session:
        return service.devices(session, "home", count=1_000)


def test_model_that_the_device_dropped_is_still_shown(fleet: Database, enrol: Enrol) -> None:
    enrol("dev-1")
    record(fleet, progress(1, 1))
    record(fleet, Progress(SESSION, 1, 2, []))
    assert view(fleet).progress == {}


@pytest.mark.parametrize(
    "message",
    [
        presence(True, 2**63),
        progress(2**64 - 1, 1),
        progress(1, 2**63),
        progress(1, 1, epoch=2**63),
        progress(1, 1, changed_ms=-(2**63) - 1),
        Progress(SESSION, 1, 1, progress(1, 1).models * 2),
        progress(1, 1, refusals=[Refusal("t", Reason.EXPIRED, "", 2**64 - 1)]),
    ],
)
def test_value_that_the_database_cannot_hold(
    fleet: Database, enrol: Enrol, message: Presence | Progress
) -> None:
    enrol("dev-1")
    before = view(fleet)
    with pytest.raises(Refused):
        record(fleet, message)
    assert view(fleet) == before


def test_one_hostile_message_spoils_the_batch(fleet: Database, enrol: Enrol) -> None:
    enrol("dev-1")
    enrol("dev-2")
    batch = [
        inbound("dev-1", progress(2**64 - 1, 1)),
        inbound("dev-2", progress(1, 4)),
        inbound("stranger", progress(1, 1)),
    ]
    with fleet.transaction() as session:
        acks = recording.handle_progress(session, batch, 100)
        recording.handle_presence(session, [inbound("stranger", presence(True, 1))], 100)
    assert acks == [DeviceAck("dev-2", SESSION, progress=4)]
    assert view(fleet, "dev-2").progress["detector"].phase is Phase.SUCCEEDED
    assert [found.name for found in _all(fleet)] == ["dev-1", "dev-2"]


def test_terminal_that_obeys_a_device(fleet: Database, enrol: Enrol) -> None:
    enrol("dev-1")
    record(fleet, progress(1, 1, detail="\x1b[2Jgone\x00", target="\x07", rollout="r" * 5_000))
    found = view(fleet).progress["detector"]
    assert found.detail == "[2Jgone"
    assert found.target == ""
    assert len(found.rollout) == recording.ROLLOUT_CHARACTERS


def test_refusals_without_end_fill_the_disk(fleet: Database, enrol: Enrol) -> None:
    enrol("dev-1")
    refusals: list[Refusal] = []
    for sequence in range(20):
        refusals = [
            Refusal("topic", Reason.OLD_EPOCH, "", at_ms=sequence * 16 + number)
            for number in range(16)
        ]
        record(fleet, progress(1, sequence, refusals=refusals), now_ms=sequence)
    record(fleet, progress(1, 99, refusals=refusals), now_ms=99)
    with fleet.reading() as session:
        kept = state_repository.refusals(session, "home", "dev-1", 1_000)
    assert len(kept) == recording.REFUSALS_KEPT
    assert kept[0].at_ms == 20 * 16 - 1
    assert kept[0].received_ms == 19

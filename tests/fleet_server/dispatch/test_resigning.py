"""What is signed anew is what was said before, and nothing that devices hold stands above it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fleet_contract import topics
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust import checks
from fleet_contract.trust.checks import Audience
from fleet_contract.trust.directive import Activation, Assignment, Directive, Starts
from fleet_server.database import Database
from fleet_server.devices import stopping
from fleet_server.dispatch import resigning
from fleet_server.dispatch import service as dispatch
from fleet_server.errors import Conflict
from fleet_server.trust.keyring import Keyring, open_keyring

FLEET = "home"
NOW_MS = 1_795_000_000_000
LATER_MS = NOW_MS + 30 * 86_400_000
DIRECTIVE = Directive(
    fleet=FLEET,
    cohort="default",
    model="digits",
    generation=1,
    epoch=NOW_MS,
    issued_ms=NOW_MS,
    expires_ms=NOW_MS + 1_000,
    rollout="r1",
    salt="00" * 16,
    default=None,
    arms=[],
    activation=Activation.ACTIVE,
    starts=Starts.OPEN,
    spread_ms=0,
    soak_ms=0,
    report_every_ms=1_000,
    retry=0,
    standby=None,
)
ASSIGNMENT = Assignment(
    fleet=FLEET,
    device="cam-1",
    generation=1,
    epoch=NOW_MS,
    issued_ms=NOW_MS,
    cohort="default",
    labels={"site": "north"},
    pins={},
    blocks={},
    minimum_epochs={"digits": NOW_MS},
)
AUDIENCE = Audience(FLEET, "default", "digits")
DIRECTIVE_TOPIC = topics.directive(FLEET, "default", "digits")
ASSIGNMENT_TOPIC = topics.device(FLEET, "cam-1", DeviceChannel.ASSIGNMENT)


@pytest.fixture
def filled(database: Database, keyring: Keyring) -> Database:
    with database.transaction() as session:
        stopping.set_stop(session, keyring, stopped=True, reason="smoke", now_ms=NOW_MS)
        for topic, payload in (
            (DIRECTIVE_TOPIC, keyring.sign_directive(DIRECTIVE)),
            (ASSIGNMENT_TOPIC, keyring.sign_assignment(ASSIGNMENT)),
            (topics.root(FLEET), b"signed by itself"),
        ):
            dispatch.put_control(
                session, fleet=FLEET, topic=topic, epoch=NOW_MS, payload=payload, now_ms=NOW_MS
            )
    return database


@pytest.fixture
def other(tmp_path: Path) -> Keyring:
    """The same fleet under other directors and the next generation."""
    made = open_keyring(tmp_path / "other", fleet=FLEET, random_bytes=lambda n: b"o" * n)
    made.generation = 2
    made.keyset = msgspec.structs.replace(made.keyset, generation=2)
    return made


def _messages(database: Database) -> dict[str, bytes]:
    with database.transaction() as session:
        return {m.topic: m.payload for m in dispatch.control_messages(session, FLEET)}


def test_everything_is_believed_after_another_director(
    filled: Database, keyring: Keyring, other: Keyring
) -> None:
    held = checks.check_directive(
        _messages(filled)[DIRECTIVE_TOPIC],
        keyset=keyring.keyset,
        audience=AUDIENCE,
        held=None,
        minimum_epoch=0,
        now_ms=NOW_MS,
    ).acceptance
    with filled.transaction() as session:
        assert resigning.needs_resigning(session, other)
        assert resigning.resign_all(session, other, now_ms=LATER_MS) == 3
    messages = _messages(filled)
    assignment = checks.check_assignment(
        messages[ASSIGNMENT_TOPIC], keyset=other.keyset, fleet=FLEET, device="cam-1", held=None
    ).document
    directive = checks.check_directive(
        messages[DIRECTIVE_TOPIC],
        keyset=other.keyset,
        audience=AUDIENCE,
        held=held,
        minimum_epoch=assignment.minimum_epochs["digits"],
        now_ms=LATER_MS,
    ).document
    stop = checks.check_stop(
        messages[topics.stop(FLEET)], keyset=other.keyset, fleet=FLEET, held=None
    ).document
    assert (stop.stopped, stop.reason) == (True, "smoke")
    assert assignment.labels == ASSIGNMENT.labels
    stamp = {
        "generation": 2,
        "epoch": directive.epoch,
        "issued_ms": LATER_MS,
        "expires_ms": LATER_MS + 1_000,
    }
    assert directive == msgspec.structs.replace(DIRECTIVE, **stamp)
    assert directive.epoch > held.epoch
    assert messages[topics.root(FLEET)] == b"signed by itself"


def test_signed_anew_once_needs_no_second_time(filled: Database, other: Keyring) -> None:
    with filled.transaction() as session:
        resigning.resign_all(session, other, now_ms=LATER_MS)
    with filled.transaction() as session:
        assert not resigning.needs_resigning(session, other)


def test_the_epoch_is_above_what_devices_have_seen(filled: Database, keyring: Keyring) -> None:
    seen = LATER_MS + 5
    with filled.transaction() as session:
        resigning.resign_all(session, keyring, now_ms=LATER_MS, least_epoch=seen + 1)
    with filled.transaction() as session:
        epochs = {m.epoch for m in dispatch.control_messages(session, FLEET, after_epoch=seen)}
        assert epochs == {seen + 1}
        assert dispatch.next_epoch(session, FLEET, LATER_MS) == seen + 2


def test_more_documents_than_a_page(
    filled: Database, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resigning, "PAGE", 1)
    with filled.transaction() as session:
        assert resigning.resign_all(session, keyring, now_ms=LATER_MS) == 3


@pytest.mark.parametrize("damage", [b"{", b'{"payload":"!","payloadType":"x","signatures":[]}'])
def test_a_damaged_row_stops_it_with_nothing_written(
    filled: Database, keyring: Keyring, damage: bytes
) -> None:
    with filled.transaction() as session:
        dispatch.put_control(
            session,
            fleet=FLEET,
            topic=DIRECTIVE_TOPIC,
            epoch=NOW_MS + 1,
            payload=damage,
            now_ms=NOW_MS,
        )
    before = _messages(filled)

    def try_it(act: Callable[[], object]) -> None:
        with pytest.raises(Conflict, match="cannot be signed anew"):
            act()

    def resign() -> None:
        with filled.transaction() as session:
            resigning.resign_all(session, keyring, now_ms=LATER_MS)

    try_it(resign)
    assert _messages(filled) == before

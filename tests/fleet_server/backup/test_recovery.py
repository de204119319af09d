"""Guards from believing liars after a restore, from half a recovery, and from leading too early."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fleet_contract import topics
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.presence import NOTHING_SEEN, Presence, Seen
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust import checks
from fleet_contract.trust.keyset import Keyset, read_keyset
from fleet_server import succession
from fleet_server.audit.verification import PAYLOAD_TYPE, Seal
from fleet_server.backup import recovery
from fleet_server.backup.marker import MARKER_FILE, Restored, read_marker, write_marker
from fleet_server.database import Database
from fleet_server.devices import recording, repository, sightings, stopping
from fleet_server.devices import service as devices
from fleet_server.dispatch import resigning
from fleet_server.dispatch import service as dispatch
from fleet_server.dispatch.inbound import Inbound
from fleet_server.errors import Conflict, StartError
from fleet_server.trust.catalogue.repository import Catalogue
from fleet_server.trust.keyring import Keyring, open_keyring
from tests.fleet_server.conftest import ObedientClock, RunningServer

FLEET, SESSION = "home", "0" * 16
NOW_MS = 1_795_000_000_000
DEADLINE_S = 60.0


@pytest.fixture
def fleet(database: Database, keyring: Keyring) -> Database:
    with database.transaction() as session:
        devices.ensure_default_cohort(session, FLEET)
        stopping.ensure_stop(session, keyring, now_ms=NOW_MS)
    return database


def hear(fleet: Database, device: str, seen: Seen, at_ms: int = NOW_MS) -> None:
    capabilities = Capabilities({}, "x86_64", 1, 1, 1)
    presence = Presence(True, 1, SESSION, 1, "0.1.0", capabilities, {"digits": "cd" * 32}, seen)
    inbound = Inbound(FLEET, device, DeviceChannel.PRESENCE, "", presence, at_ms)
    with fleet.transaction() as session:
        recording.handle_presence(session, [inbound], at_ms)


def look(
    fleet: Database, catalogue: Catalogue, keyring: Keyring, since_ms: int = 0
) -> recovery.Survey:
    with fleet.reading() as session:
        held = recovery.held_by(catalogue, keyring)
        return recovery.survey(session, FLEET, held=held, since_ms=since_ms, now_ms=NOW_MS)


def follow(fleet: Database, catalogue: Catalogue, keyring: Keyring) -> None:
    """Have what a running server does after every change of its repository done here, too."""
    nothing_waits: Any = SimpleNamespace(settle=lambda: None)
    catalogue.followed = succession.Succession(
        fleet,
        catalogue,
        keyring,
        nothing_waits,
        ObedientClock(NOW_MS),
        lambda: None,
        Seal(partial(keyring.sign_checkpoint, PAYLOAD_TYPE), keyring.checkpoint_keys),
    )


@pytest.mark.parametrize(
    "lie",
    [
        Seen(generation=2**62),
        Seen(epoch=2**62),
        Seen(root=2_000),
        Seen(timestamp=2**31),
        Seen(snapshot=2**31),
        Seen(targets=2**31),
    ],
)
def test_lie_of_one_device_uses_up_no_numbers(
    fleet: Database, catalogue: Catalogue, keyring: Keyring, lie: Seen
) -> None:
    hear(fleet, "honest", Seen(3, NOW_MS + 5, 1, 9, 8, 7, ["digits"]))
    hear(fleet, "liar", lie)
    found = look(fleet, catalogue, keyring)
    assert found.seen == Seen(3, NOW_MS + 5, 1, 9, 8, 7, ["digits"])
    assert found.implausible == ["liar"]


def test_what_was_heard_before_the_restore_is_of_another_time(
    fleet: Database, catalogue: Catalogue, keyring: Keyring
) -> None:
    hear(fleet, "dev-1", Seen(3, 5), at_ms=NOW_MS - 1)
    found = look(fleet, catalogue, keyring, since_ms=NOW_MS)
    assert (found.seen, found.reported) == (NOTHING_SEEN, 0)


def test_known_and_unknown_devices_are_told_apart(
    fleet: Database, catalogue: Catalogue, keyring: Keyring
) -> None:
    for name in ("dev-1", "dev-2", "stranger"):
        hear(fleet, name, Seen(1, 5))
    with fleet.transaction() as session:
        for name in ("dev-1", "dev-2"):
            sightings.adopt(session, keyring, name, now_ms=NOW_MS)
    with fleet.transaction() as session:
        repository.add_device(
            session,
            fleet=FLEET,
            name="silent",
            labels={},
            cohort="default",
            enrolled_ms=1,
            capabilities={},
        )
    found = look(fleet, catalogue, keyring)
    assert (found.known, found.reported, found.silent) == (3, 2, ["silent"])
    assert [item.name for item in found.strangers] == ["stranger"]


def test_newer_root_has_to_be_brought_first(
    fleet: Database, catalogue: Catalogue, keyring: Keyring, tmp_path: Path
) -> None:
    before = keyring.generation
    with pytest.raises(Conflict) as refused:
        recovery.raise_trust(
            fleet,
            catalogue,
            keyring,
            Seen(root=2),
            accept_floors=False,
            strangers=[],
            restored_ms=None,
            now_ms=NOW_MS,
        )
    assert refused.value.code == "root_behind"
    assert "publish-root" in refused.value.advice
    assert keyring.generation == before


@pytest.mark.parametrize(
    "step", [(recovery, "raise_above"), (Catalogue, "publish_document"), (succession, "resign_all")]
)
def test_killed_in_the_middle_it_is_done_again(
    fleet: Database,
    catalogue: Catalogue,
    keyring: Keyring,
    tmp_path: Path,
    step: tuple[Any, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = Seen(4, NOW_MS + 99, 1, 20, 20, 20, ["digits"])

    def go_on(keyring: Keyring) -> recovery.Raised:
        follow(fleet, catalogue, keyring)
        return recovery.raise_trust(
            fleet,
            catalogue,
            keyring,
            seen,
            accept_floors=False,
            strangers=[],
            restored_ms=None,
            now_ms=NOW_MS,
        )

    class Killed(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(*step, die)
        with pytest.raises(Killed):
            go_on(keyring)
    restarted = open_keyring(tmp_path / "keys", fleet=FLEET, random_bytes=bytes)
    done = go_on(restarted)
    assert done.generation > 4
    with fleet.reading() as session:
        stop = {m.topic: m.payload for m in dispatch.control_messages(session, FLEET)}[
            topics.stop(FLEET)
        ]
        assert not resigning.needs_resigning(session, restarted)
    held = checks.Acceptance(4, NOW_MS + 99, "ab" * 32)
    accepted = checks.check_stop(stop, keyset=restarted.keyset, fleet=FLEET, held=held)
    assert accepted.acceptance.epoch > NOW_MS + 99


def test_mark_that_cannot_be_read_keeps_the_server_from_leading(tmp_path: Path) -> None:
    assert read_marker(tmp_path) is None
    (tmp_path / MARKER_FILE).write_bytes(b"{")
    with pytest.raises(StartError):
        read_marker(tmp_path)


def test_restored_server_publishes_nothing_before_it_asked(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    first = start_server()
    first.wait_ready()
    first.stop()
    data_dir = first.settings.data_dir
    write_marker(data_dir, Restored(NOW_MS, NOW_MS - 5))
    server = start_server(ObedientClock(NOW_MS + 10))
    state = server.app.state
    ready = server.anonymous.get("/ready")
    assert ready.status_code == 503
    assert ready.json()["checks"]["after_restore"] is False
    assert "after-restore" in ready.json()["advice"]
    shown = server.client.get("/v1/trust/after-restore").json()
    assert (shown["restored_ms"], shown["backup_made_ms"]) == (NOW_MS, NOW_MS - 5)
    assert state.publisher.counts().published == 0
    assert state.controller.counts()["looks"] == 0
    done = server.client.post("/v1/trust/after-restore", json={})
    assert done.status_code == 200, done.text
    server.wait_ready()
    assert read_marker(data_dir) is None
    deadline_s = time.monotonic() + DEADLINE_S
    while not state.controller.counts()["looks"]:
        assert time.monotonic() < deadline_s, "the controller does not look"
        time.sleep(0.01)
    assert server.client.get("/v1/trust/after-restore").json()["restored_ms"] is None
    actions = [entry["action"] for entry in server.client.get("/v1/audit").json()["entries"]]
    assert "trust.after-restore" in actions


def test_restored_server_that_is_stopped_stays_restored(
    start_server: Callable[..., RunningServer],
) -> None:
    first = start_server()
    first.stop()
    write_marker(first.settings.data_dir, Restored(1, 1))
    second = start_server()
    second.stop()
    assert read_marker(first.settings.data_dir) == Restored(1, 1)


def test_word_of_a_device_takes_no_release_away_unseen(
    fleet: Database, catalogue: Catalogue, keyring: Keyring, tmp_path: Path
) -> None:
    hear(fleet, "dev-1", Seen(1, 5, release_floors={"digits": 5, "doors": 2}))
    hear(fleet, "dev-2", Seen(1, 5, release_floors={"digits": 4}))
    found = look(fleet, catalogue, keyring)
    assert found.seen.release_floors == {"digits": 5, "doors": 2}

    def go_on(*, accept_floors: bool) -> None:
        follow(fleet, catalogue, keyring)
        recovery.raise_trust(
            fleet,
            catalogue,
            keyring,
            found.seen,
            accept_floors=accept_floors,
            strangers=[],
            restored_ms=None,
            now_ms=NOW_MS,
        )

    with pytest.raises(Conflict, match="digits below 5, doors below 2"):
        go_on(accept_floors=False)
    go_on(accept_floors=True)
    # What the devices held: nothing in the new keyset is below it.
    held = Keyset(FLEET, 1, NOW_MS - 5, [], {"digits": 5, "doors": 2})
    read_keyset(keyring.keyset_bytes, fleet=FLEET, held=held)

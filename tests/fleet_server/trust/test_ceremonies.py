"""Guards from a server that signs by keys which devices do not believe, or forgets what waits."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet_contract import topics
from fleet_contract.trust.checks import check_stop
from fleet_contract.trust.keyset import KEYSET_PATH
from fleet_server.dispatch import service as dispatch
from fleet_server.errors import Conflict, Invalid, StartError
from fleet_server.succession import Succession, adopt_keyset
from fleet_server.trust import durable
from fleet_server.trust.founding import found
from fleet_server.trust.keyring import Keyring

FLEET = "home"
COHORT = {"name": "lab", "priority": 1, "selector": {"site": "lab"}}


def stop_message(server: Any) -> bytes:
    with server.app.state.database.reading() as session:
        messages = dispatch.control_messages(session, FLEET)
    return next(item.payload for item in messages if item.topic == topics.stop(FLEET))


def believed(server: Any) -> None:
    """What the broker must hold is signed by the keyset that is vouched for."""
    state = server.app.state
    assert state.catalogue.document(KEYSET_PATH) == state.keyring.keyset_bytes
    check_stop(stop_message(server), keyset=state.keyring.keyset, fleet=FLEET, held=None)


@pytest.mark.parametrize("lost", [False, True])
def test_what_the_old_director_signed_stays(server: Any, lost: bool) -> None:
    before = server.app.state.keyring.keyset
    old = stop_message(server)
    answer = server.client.post("/v1/trust/rotations", json={"role": "director", "lost": lost})
    assert answer.json()["committed"], answer.text
    believed(server)
    after = server.app.state.keyring.keyset
    assert stop_message(server) != old
    assert after.generation == before.generation + lost
    kept = {key.keyid for key in before.directors} & {key.keyid for key in after.directors}
    assert kept == (set() if lost else {before.directors[1].keyid})
    assert (after.epoch_floor > before.epoch_floor) is lost
    held = {path.name for path in (server.settings.data_dir / "keys").glob("*.key")}
    assert len(held) == 2, "the old director's key is gone"


@pytest.mark.parametrize("lost", [[False], [False, False], [True]])
def test_audit_of_another_director_looks_as_if_somebody_had_altered_it(
    server: Any, lost: list[bool]
) -> None:
    """Only keys of before signed it, which nobody believes any more."""
    assert server.client.post("/v1/cohorts", json=COHORT).status_code == 201
    assert server.client.post("/v1/audit/checkpoints").status_code == 201
    for each in lost:
        server.client.post("/v1/trust/rotations", json={"role": "director", "lost": each})
    found = server.client.get("/v1/audit/verification").json()
    assert found["intact"], found["findings"]
    assert found["signed_sequence"] >= 2, "the new director vouches for what was before it"
    keys = server.client.get("/v1/audit/checkpoints").json()["keys"]
    assert set(keys) == {key.keyid for key in server.app.state.keyring.keyset.directors}


def test_killed_between_the_keyset_and_what_it_voids(
    start_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server()
    monkeypatch.setattr(Succession, "__call__", lambda self: None)
    server.client.post("/v1/trust/rotations", json={"role": "director", "lost": True})
    assert server.app.state.keyring.generation == 1
    server.stop()
    monkeypatch.undo()
    server = start_server()
    assert server.app.state.keyring.generation == 2
    believed(server)


@pytest.mark.parametrize(
    "body",
    [
        {"role": "root"},
        {"role": "targets"},
        {"role": "snapshot"},
        {"role": "timestamp"},
        {"role": "director"},
        {"role": "director", "lost": True},
    ],
    ids=lambda body: "-".join(str(value) for value in body.values()),
)
def test_disk_that_fills_up_during_a_ceremony(
    server: Any, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whichever file: the operator is told, and with room again the server obeys itself."""
    write, left = durable.write_file, 0
    catalogue = server.app.state.catalogue

    def fill(path: Path, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    for room in range(20):
        left = room
        monkeypatch.setattr(durable, "write_file", fill)
        answer = server.client.post("/v1/trust/rotations", json=body)
        monkeypatch.setattr(durable, "write_file", write)
        if answer.status_code == 200:
            break
        assert answer.status_code == 503, answer.text
        assert answer.json()["type"].endswith("disk_refuses")
        catalogue.renew()
        assert not catalogue.changes.pending
        believed(server)
    assert room > 3 and left >= 0
    believed(server)


def test_newest_root_is_not_on_the_broker(server: Any) -> None:
    def root() -> bytes:
        with server.app.state.database.reading() as session:
            messages = dispatch.control_messages(session, FLEET)
        return next(item.payload for item in messages if item.topic == topics.root(FLEET))

    first = root()
    assert json.loads(first)["signed"]["version"] == 1
    assert server.client.post("/v1/trust/rotations", json={"role": "snapshot"}).json()["committed"]
    assert json.loads(root())["signed"]["version"] == 2
    believed(server)


def test_server_whose_root_is_elsewhere(
    tmp_path: Path, start_server: Callable[..., Any], clock: Any
) -> None:
    data_dir, folder = tmp_path / "guarded", tmp_path / "ceremony"

    def begin() -> None:
        found(
            data_dir,
            folder,
            fleet=FLEET,
            keys=3,
            threshold=2,
            families_offline=False,
            random_bytes=os.urandom,
            now_ms=clock.now_ms(),
        )

    begin()
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    with pytest.raises(Conflict):
        begin()
    server = start_server(data_dir=data_dir)
    believed(server)
    status = server.client.get("/v1/trust/status").json()
    assert status["warnings"] == [] and not server.app.state.catalogue.holds_root_key
    answer = server.client.post("/v1/trust/rotations", json={"role": "director"})
    assert answer.json() == {"committed": False, "what": "another key for director"}
    believed(server)
    (proposal,) = server.client.get("/v1/trust/pending").json()["proposals"]
    assert proposal["why"] == ["another director"]
    assert [need["missing"] for need in proposal["needs"]] == [2]
    status = server.client.get("/v1/trust/status").json()
    assert "trust sign" in status["next_step"] and len(status["pending"]) == 1


def test_threshold_above_the_number_of_keys(tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        found(
            tmp_path / "data",
            tmp_path / "keys",
            fleet=FLEET,
            keys=2,
            threshold=3,
            families_offline=False,
            random_bytes=os.urandom,
            now_ms=1,
        )
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "keys").exists(), "keys that nobody uses would be handed out"


def test_keyset_whose_keys_are_elsewhere(catalogue: Any, keyring: Keyring, clock: Any) -> None:
    fresh = keyring.propose_directors(
        keyring.keyset_bytes, lost=True, now_ms=clock.now_ms(), random_bytes=clock.random_bytes
    )
    assert catalogue.publish_document(KEYSET_PATH, fresh)
    for path in keyring._folder.glob("director-*.key"):
        if path.name != "director-next.key":
            path.unlink()
    keyring._keys = dict(list(keyring._keys.items())[:2])
    with pytest.raises(StartError):
        adopt_keyset(catalogue, keyring)


@pytest.mark.parametrize(
    "keys",
    [
        [{"keyid": "ab" * 32, "public": {}}],
        [{"keyid": "ab" * 32, "public": {"keytype": "x", "scheme": "x", "keyval": {}}}],
        [{"keyid": "ab" * 32, "public": {"keytype": 1, "scheme": [], "keyval": {"public": "x"}}}],
    ],
)
def test_key_that_is_none(server: Any, keys: list[Any]) -> None:
    answer = server.client.post("/v1/trust/rotations", json={"role": "targets", "keys": keys})
    assert answer.status_code == 422, answer.text

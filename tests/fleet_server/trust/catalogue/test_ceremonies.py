"""Guards from a change that is shown before its signatures are there, and from lost changes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError

from fleet_contract.manifest import FileRef
from fleet_contract.trust.keyset import KEYSET_PATH
from fleet_server.errors import Conflict, Invalid, NotFound, Unavailable
from fleet_server.trust import durable, offline
from fleet_server.trust.catalogue import rotation
from fleet_server.trust.catalogue.committed import Founders
from fleet_server.trust.catalogue.opening import make_catalogue
from fleet_server.trust.catalogue.raising import raise_above
from fleet_server.trust.catalogue.repository import Catalogue


def found(bench: Any, *, families_offline: bool = False) -> dict[str, list[CryptoSigner]]:
    """Make a repository whose root and targets need two of three keys that are elsewhere."""
    made = {
        role: [CryptoSigner.generate_ed25519() for _ in range(3)] for role in ("root", "targets")
    }
    make_catalogue(
        bench.folder / "trust",
        os.urandom,
        bench.now_ms,
        founders={role: Founders(signers, 2) for role, signers in made.items()},
        documents={KEYSET_PATH: b'{"first":1}'},
        families_offline=families_offline,
    )
    return made


def sign(catalogue: Catalogue, *signers: CryptoSigner) -> bool:
    """Give the signatures of these keys to everything that waits."""
    done = False
    for proposal in list(catalogue.changes.pending.values()):
        brought = []
        for need in catalogue.changes.needs(proposal):
            data = proposal.metadata()[need.role].signed_bytes
            wanted = [offline.held(key) for key in need.unsigned.values()]
            signed = offline.sign(data, wanted, signers, [])
            brought += [(need.role, keyid, text) for keyid, text in signed.items()]
        done = catalogue.add_signatures(proposal.id, brought)
    return done


def publish(catalogue: Catalogue, files: list[FileRef]) -> bool:
    return catalogue.publish("digits", files[0], files[1:])


def test_change_that_one_of_two_has_signed(bench: Any, judge: Callable[..., Any]) -> None:
    keys = found(bench)
    catalogue = bench.open()
    before = catalogue.versions()
    assert not catalogue.publish_document(KEYSET_PATH, b'{"second":1}')
    assert not sign(catalogue, keys["targets"][0])
    assert catalogue.versions() == before
    assert catalogue.document(KEYSET_PATH) == b'{"first":1}'
    # Each signs on another day, and the server was started anew in between.
    catalogue = bench.open()
    assert sign(catalogue, keys["targets"][2])
    assert catalogue.document(KEYSET_PATH) == b'{"second":1}'
    assert not catalogue.changes.pending
    judge(catalogue, fresh=True)


def test_signature_that_is_not_one(bench: Any) -> None:
    keys = found(bench)
    catalogue = bench.open()
    catalogue.publish_document(KEYSET_PATH, b'{"second":1}')
    (proposal,) = catalogue.changes.pending
    keyid = keys["targets"][0].public_key.keyid
    with pytest.raises(Invalid, match="wrong"):
        catalogue.add_signatures(proposal, [("targets", keyid, "00" * 64)])
    stranger = keys["root"][0].public_key.keyid
    with pytest.raises(Invalid, match="may not sign"):
        catalogue.add_signatures(proposal, [("targets", stranger, "00" * 64)])
    with pytest.raises(Invalid, match="may not sign"):
        catalogue.add_signatures(proposal, [("root", keyid, "00" * 64)])
    with pytest.raises(NotFound):
        catalogue.add_signatures("f" * 16, [("targets", keyid, "00" * 64)])
    waiting = catalogue.changes.pending[proposal]
    assert not any(need.signed for need in catalogue.changes.needs(waiting))


def test_signature_for_what_changed_since(bench: Any) -> None:
    keys = found(bench)
    catalogue = bench.open()
    catalogue.publish_document(KEYSET_PATH, b'{"second":1}')
    (first,) = catalogue.changes.pending
    sign(catalogue, keys["targets"][0])
    catalogue.publish_document("anchors.json", b"{}")
    (second,) = catalogue.changes.pending
    assert second != first
    merged = catalogue.changes.pending[second]
    assert set(merged.documents) == {KEYSET_PATH, "anchors.json"} and len(merged.why) == 2
    assert not any(need.signed for need in catalogue.changes.needs(merged))
    assert not sign(catalogue, keys["targets"][0]) and sign(catalogue, keys["targets"][1])
    assert catalogue.document(KEYSET_PATH) == b'{"second":1}'


@pytest.mark.parametrize("role", rotation.ONLINE)
def test_online_role_whose_key_was_lost(
    bench: Any, judge: Callable[..., Any], files: Any, role: str
) -> None:
    catalogue = bench.open()
    publish(catalogue, files("one"))
    judge(catalogue)
    old = catalogue.changes.signers.held(role)[0]
    assert rotation.rotate_online(catalogue, role)
    assert catalogue.versions()["root"] == 2
    (new,) = catalogue.changes.signers.held(role)
    assert new.keyid != old.keyid
    pem = bench.folder / "trust" / "keys"
    assert not (pem / old.uri.removeprefix("file2:")).exists()
    # A client that knows the old metadata goes on, and so does the server after a restart.
    judge(catalogue)
    catalogue = bench.open()
    publish(catalogue, files("two"))
    judge(catalogue)


def test_online_key_waits_for_the_root(bench: Any, judge: Callable[..., Any]) -> None:
    keys = found(bench)
    catalogue = bench.open()
    judge(catalogue)
    assert not rotation.rotate_online(catalogue, "timestamp")
    assert not rotation.rotate_online(catalogue, "snapshot")
    (proposal,) = catalogue.changes.pending.values()
    assert set(proposal.signers) == {"timestamp", "snapshot"}
    catalogue.renew()
    judge(catalogue)
    assert not sign(catalogue, keys["root"][0])
    assert sign(catalogue, keys["root"][1])
    judge(catalogue)


def test_root_that_only_its_own_keys_signed(bench: Any, judge: Callable[..., Any]) -> None:
    keys = found(bench)
    catalogue = bench.open()
    judge(catalogue)
    fresh = [CryptoSigner.generate_ed25519() for _ in range(2)]
    assert not rotation.rotate_top(
        catalogue, "root", [offline.held(item.public_key) for item in fresh], 2
    )
    assert not sign(catalogue, *fresh)
    assert not sign(catalogue, keys["root"][0])
    assert catalogue.versions()["root"] == 1
    assert sign(catalogue, keys["root"][1])
    assert catalogue.versions()["root"] == 2
    judge(catalogue)
    assert not rotation.rotate_online(catalogue, "timestamp")
    with pytest.raises(Invalid):
        (proposal,) = catalogue.changes.pending
        catalogue.add_signatures(proposal, [("root", keys["root"][2].public_key.keyid, "00" * 64)])


def test_keys_that_stay_on_the_server(bench: Any, judge: Callable[..., Any]) -> None:
    catalogue = bench.open()
    judge(catalogue)
    assert catalogue.holds_root_key
    kept: list[CryptoSigner] = []
    for role in ("root", "targets"):
        fresh = [CryptoSigner.generate_ed25519() for _ in range(3)]
        held = [offline.held(item.public_key) for item in fresh]
        assert not rotation.rotate_top(catalogue, role, held, 2)
        kept += fresh
        assert sign(catalogue, *kept)
        judge(catalogue)
    assert not catalogue.holds_root_key
    names = {path.name for path in (bench.folder / "trust" / "keys").iterdir()}
    assert names == {"snapshot.pem", "timestamp.pem", "signers.json"}


def test_threshold_that_nobody_can_meet(bench: Any) -> None:
    catalogue = bench.open()
    key = offline.held(CryptoSigner.generate_ed25519().public_key)
    for keys, threshold in (([key], 2), ([key, key], 2), ([key], 0)):
        with pytest.raises(Invalid):
            rotation.rotate_top(catalogue, "root", keys, threshold)
    assert not catalogue.changes.pending


def test_family_without_a_key_of_its_own(bench: Any, judge: Any, files: Any) -> None:
    keys = found(bench, families_offline=True)
    catalogue = bench.open()
    with pytest.raises(Unavailable, match="may sign digits"):
        publish(catalogue, files("one"))
    team = CryptoSigner.generate_ed25519()
    assert not rotation.rotate_family(catalogue, "digits", [offline.held(team.public_key)], 1, [])
    # The release comes before the delegation is signed, and goes with it.
    assert not publish(catalogue, files("one"))
    sign(catalogue, *keys["targets"][:2])
    assert sign(catalogue, team)
    manifest = files("one")[0]
    path = f"manifests/digits/{manifest.digest}.json"
    assert catalogue.vouches("digits", path)
    judge(catalogue, path)
    # From now on the team alone decides.
    assert not publish(catalogue, files("two"))
    assert sign(catalogue, team)
    judge(catalogue, path)


class Cut(BaseException):
    """The power is off."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_while_keys_change(
    bench: Any,
    judge: Callable[..., Any],
    files: Any,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
) -> None:
    catalogue = bench.open()
    publish(catalogue, files("one"))
    judge(catalogue)
    write = durable.write_file
    number = 0
    while True:
        number += 1
        left = number

        def cut(path: Path, data: bytes) -> None:
            nonlocal left
            left -= 1
            if left == 0 and not after:
                raise Cut
            write(path, data)
            if left == 0:
                raise Cut

        monkeypatch.setattr(durable, "write_file", cut)
        try:
            rotation.rotate_online(catalogue, "timestamp")
        except Cut:
            monkeypatch.setattr(durable, "write_file", write)
            catalogue = bench.open()
            judge(catalogue)
        else:
            monkeypatch.setattr(durable, "write_file", write)
            break
    assert number > 5
    assert not catalogue.changes.pending
    publish(catalogue, files("two"))
    judge(catalogue)


def test_root_from_elsewhere_that_does_not_follow(bench: Any) -> None:
    keys = found(bench)
    catalogue = bench.open()
    present = json.loads(catalogue.root_bytes)
    for damage in (b"", b"{}", b"[]", catalogue.read("timestamp.json")):
        with pytest.raises(Invalid):
            rotation.take_root(catalogue, damage)
    with pytest.raises(Conflict, match="version 1"):
        rotation.take_root(catalogue, json.dumps(present).encode())
    root = catalogue.changes.root()
    root.version = 2
    unsigned = {"signatures": [], "signed": root.to_dict()}
    assert not rotation.take_root(catalogue, json.dumps(unsigned).encode())
    assert catalogue.versions()["root"] == 1
    assert not sign(catalogue, keys["root"][0])
    assert sign(catalogue, keys["root"][1])
    assert catalogue.versions()["root"] == 2


@pytest.fixture
def lost(bench: Any, files: Any, judge: Callable[..., Any]) -> dict[str, Any]:
    """A server is lost after three ceremonies that its backup does not know."""
    keys = found(bench)
    catalogue = bench.open()
    assert not publish(catalogue, files("one"))
    sign(catalogue, *keys["targets"][:2])
    shutil.copytree(bench.folder / "trust", bench.folder / "backup")
    for role in ("timestamp", "snapshot"):
        rotation.rotate_online(catalogue, role)
        assert sign(catalogue, *keys["root"][:2])
    fresh = [CryptoSigner.generate_ed25519() for _ in range(3)]
    rotation.rotate_top(catalogue, "targets", [offline.held(key.public_key) for key in fresh], 2)
    assert sign(catalogue, *keys["root"][:2], *fresh[:2])
    judge(catalogue)
    roots = [catalogue.read(f"{number}.root.json") for number in (2, 3, 4)]
    seen = {role: catalogue.versions()[role] for role in ("timestamp", "snapshot", "targets")}
    shutil.rmtree(bench.folder / "trust")
    (bench.folder / "backup").rename(bench.folder / "trust")
    return {"root": keys["root"], "targets": fresh, "roots": roots, "seen": seen}


def test_restored_server_without_the_keys_of_the_newer_roots(
    bench: Any, files: Any, judge: Callable[..., Any], lost: dict[str, Any]
) -> None:
    catalogue = bench.open(may_make=False)
    with pytest.raises(RepositoryError):
        judge(catalogue)
    with pytest.raises(Conflict, match="version 3"):
        rotation.take_root(catalogue, lost["roots"][1])
    for data in lost["roots"]:
        # A server that stops in between goes on where it was.
        catalogue = bench.open(may_make=False)
        assert not rotation.take_root(catalogue, data)
        assert len(catalogue.changes.pending) == 1
        assert catalogue.versions()["root"] == 1
    assert not sign(catalogue, *lost["root"][:2])
    assert sign(catalogue, *lost["targets"][1:])
    assert catalogue.versions()["root"] == 5
    assert raise_above(catalogue, lost["seen"], ["digits"]) == ["targets"]
    assert sign(catalogue, *lost["targets"][:2])
    judge(catalogue)
    assert publish(catalogue, files("two"))
    judge(bench.open(may_make=False))


def test_root_of_a_lost_server_that_too_few_have_signed(bench: Any, lost: dict[str, Any]) -> None:
    catalogue = bench.open(may_make=False)
    root = json.loads(lost["roots"][0])
    root["signatures"] = root["signatures"][:1]
    with pytest.raises(Conflict, match="not as many"):
        rotation.take_root(catalogue, json.dumps(root).encode())
    assert not catalogue.changes.pending


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_write_while_roots_of_a_lost_server_follow(
    bench: Any,
    judge: Callable[..., Any],
    lost: dict[str, Any],
    after: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(bench.folder / "trust", bench.folder / "again")
    write, number, done = durable.write_file, 0, False
    while not done:
        number += 1
        left = number

        def cut(path: Path, data: bytes) -> None:
            nonlocal left
            left -= 1
            if left == 0 and not after:
                raise Cut
            write(path, data)
            if left == 0:
                raise Cut

        shutil.rmtree(bench.folder / "trust")
        shutil.copytree(bench.folder / "again", bench.folder / "trust")
        catalogue = bench.open(may_make=False)
        for data in lost["roots"]:
            rotation.take_root(catalogue, data)
        monkeypatch.setattr(durable, "write_file", cut)
        try:
            done = sign(catalogue, *lost["root"], *lost["targets"])
        except Cut:
            monkeypatch.setattr(durable, "write_file", write)
            catalogue = bench.open(may_make=False)
            if catalogue.changes.pending:
                sign(catalogue, *lost["root"], *lost["targets"])
        monkeypatch.setattr(durable, "write_file", write)
        assert bench.open(may_make=False).versions()["root"] == 5
    assert number > 5

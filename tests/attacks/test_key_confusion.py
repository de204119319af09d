"""A key that may sign one thing may not sign another, and a document of one kind is no other."""

from __future__ import annotations

from itertools import product

import pytest

from fleet_contract.errors import Reason
from tests.attacks.siege import Siege, signed, stranger
from tests.device_agent.shell.toy_fleet import MODEL

KINDS = ["root", "timestamp", "snapshot", "targets"]
ROLES = ["timestamp", "snapshot", "targets", f"model.{MODEL}"]
KEYS = ["root", *ROLES, "model.other", "nobody", "stranger"]


@pytest.mark.parametrize(
    ("role", "key"), [pair for pair in product(ROLES, KEYS) if len({*pair}) == 2]
)
def test_role_signed_by_the_key_of_another(siege: Siege, role: str, key: str) -> None:
    siege.fleet.catalogue.publish("other", siege.fleet.put_file(b"{}"), [])
    release = siege.fleet.release("2.0.0", opset=14)
    keys = {"nobody": [], "stranger": [stranger()]}
    signers = keys[key] if key in keys else [siege.key_of(key)]
    name, metadata = siege.present(role)
    metadata.signed.version += 1  # so that the device looks at it
    siege.show(name, signed(metadata, *signers))
    forget(siege)
    siege.refused(release, Reason.BAD_SIGNATURE)
    siege.give_up()
    siege.fetch(release)


def test_bin_signed_by_another_model_s_key(siege: Siege) -> None:
    siege.fleet.catalogue.publish("other", siege.fleet.put_file(b"{}"), [])
    release = siege.fleet.release("2.0.0", opset=14)
    name, metadata = siege.present(siege.bin_of(release.manifest))
    siege.show(name, signed(metadata, siege.key_of("model.other")))
    siege.refused(release, Reason.BAD_SIGNATURE)
    siege.give_up()
    siege.fetch(release)


def test_same_signature_twice_is_one(siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    _, root = siege.present("root")
    root.signed.version = 2
    root.signed.roles["timestamp"].threshold = 2
    root.signed.add_key(stranger().public_key, "timestamp")
    siege.show("2.root.json", signed(root, siege.key_of("root")))
    name, timestamp = siege.present("timestamp")
    own = siege.key_of("timestamp")
    data = signed(timestamp, own)
    one = data[data.index(b'{"keyid"') : data.index(b"]")]
    siege.show(name, data.replace(one, one + b"," + one))
    with pytest.raises(Exception, match=r"bad_signature|bad_metadata"):
        siege.fetch(release)
    assert siege.store.load_manifest(release.digest) is None


@pytest.mark.parametrize(
    ("role", "other"), [pair for pair in product(KINDS[1:], KINDS) if len({*pair}) == 2]
)
def test_document_of_another_kind(siege: Siege, role: str, other: str) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    name = siege.present(role)[0]
    # Even with the right key: the document says what it is.
    siege.show(name, signed(siege.present(other)[1], siege.key_of(role)))
    forget(siege)
    siege.refused(release, Reason.BAD_METADATA)
    siege.give_up()
    siege.fetch(release)


def test_model_s_role_vouches_for_another_model(siege: Siege) -> None:
    """The thief of one team's key puts a manifest of another team's model into his own bins."""
    release = siege.fleet.release("2.0.0", opset=14)
    target = siege.present(siege.bin_of(release.manifest))[1].signed.targets[release.manifest]
    siege.fleet.catalogue.publish("other", siege.fleet.put_file(b"{}"), [])
    foreign = target.path.replace(release.digest, "f" * 64)
    target.path = foreign
    for role in list(siege.fleet.catalogue.versions()):
        if role.startswith(("bin.other-", "model.other")):
            name, metadata = siege.present(role)
            metadata.signed.targets[foreign] = target
            siege.show(name, signed(metadata, siege.key_of("model.other")))
    forged = type(release)(foreign, "f" * 64)
    siege.refused(forged, Reason.UNKNOWN_TARGET)


def forget(siege: Siege) -> None:
    """Let the device ask for all of it again."""
    for path in (siege.store.folder / "metadata").iterdir():
        if path.name != "root.json":
            path.unlink()

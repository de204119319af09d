"""Versions driven up with stolen online keys do not lock a device out for ever."""

from __future__ import annotations

import pytest
from tuf.api.metadata import Metadata

from fleet_contract.errors import Reason
from tests.attacks.siege import Siege, signed, stranger

FAR = 1_000_000


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_fast_forward(siege: Siege, role: str) -> None:
    _, snapshot = siege.present("snapshot")
    _, timestamp = siege.present("timestamp")
    timestamp.signed.version = FAR
    if role == "snapshot":
        snapshot.signed.version = FAR
        for meta in snapshot.signed.meta.values():
            meta.version += FAR
        timestamp.signed.snapshot_meta.version = FAR
        siege.show(f"{FAR}.snapshot.json", signed(snapshot, siege.key_of("snapshot")))
    siege.show("timestamp.json", signed(timestamp, siege.key_of("timestamp")))
    release = siege.fleet.release("2.0.0", opset=14)
    with pytest.raises(Exception, match=r"download_failed|unknown_target"):
        siege.fetch(release)
    assert siege.believed("timestamp") == FAR
    siege.give_up()
    siege.refused(release, Reason.OLD_METADATA)

    # The owner gives both online roles new keys: what the old ones signed counts no longer.
    _, root = siege.present("root")
    keys = {name: stranger() for name in ("snapshot", "timestamp")}
    for name, key in keys.items():
        root.signed.revoke_key(siege.key_of(name).public_key.keyid, name)
        root.signed.add_key(key.public_key, name)
    root.signed.version = 2
    siege.show("2.root.json", signed(root, siege.key_of("root")))
    for name, key in keys.items():
        shown, metadata = siege.present(name)
        siege.show(shown, signed(metadata, key))
    siege.fetch(release)
    assert siege.believed("root") == 2
    assert siege.believed("timestamp") < FAR


def test_root_that_jumps_ahead(siege: Siege) -> None:
    _, root = siege.present("root")
    root.signed.version = FAR
    siege.show("2.root.json", signed(root, siege.key_of("root")))
    release = siege.fleet.release("2.0.0", opset=14)
    siege.refused(release, Reason.OLD_METADATA)
    assert siege.believed("root") == 1
    siege.give_up()
    siege.fetch(release)


def test_root_signed_by_itself_alone(siege: Siege) -> None:
    _, root = siege.present("root")
    thief = stranger()
    root.signed.revoke_key(siege.key_of("root").public_key.keyid, "root")
    root.signed.add_key(thief.public_key, "root")
    root.signed.version = 2
    siege.show("2.root.json", signed(root, thief))
    release = siege.fleet.release("2.0.0", opset=14)
    siege.refused(release, Reason.BAD_SIGNATURE)
    siege.show("2.root.json", signed(Metadata(root.signed), siege.key_of("root")))
    siege.refused(release, Reason.BAD_SIGNATURE)
    assert siege.believed("root") == 1
    siege.give_up()
    siege.fetch(release)

"""A thief of the online keys can say what he likes, but nothing that is older than what was said.

Each test takes one role back alone, with every other one as it has to be, and signed by the right
key: so the one check that is in the way has to hold by itself.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

from fleet_contract.errors import Reason
from fleet_contract.trust.directive import ReleaseRef
from fleet_contract.trust.keyset import KEYSET_PATH
from tests.attacks.siege import Siege, signed
from tests.device_agent.shell.toy_fleet import MODEL


def forget(siege: Siege, *roles: str) -> None:
    for path in (siege.store.folder / "metadata").iterdir():
        if path.stem.partition(".")[0] in roles:
            path.unlink()


def show_snapshot(siege: Siege, change: object) -> None:
    """Show a newer snapshot, changed by the thief, and a newer timestamp that vouches for it."""
    _, snapshot = siege.present("snapshot")
    _, timestamp = siege.present("timestamp")
    snapshot.signed.version += 1
    change(snapshot.signed)  # type: ignore[operator]
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta.version = snapshot.signed.version
    name = f"{snapshot.signed.version}.snapshot.json"
    siege.show(name, signed(snapshot, siege.key_of("snapshot")))
    siege.show("timestamp.json", signed(timestamp, siege.key_of("timestamp")))


def recover(siege: Siege, release: ReleaseRef) -> None:
    siege.give_up()
    siege.fetch(release)


def test_timestamp_taken_back_alone(siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    siege.fetch(release)
    _, timestamp = siege.present("timestamp")
    timestamp.signed.version -= 1
    siege.show("timestamp.json", signed(timestamp, siege.key_of("timestamp")))
    siege.refused(siege.fleet.release("3.0.0", opset=15), Reason.OLD_METADATA)
    recover(siege, siege.fleet.release("4.0.0", opset=16))


def test_snapshot_taken_back_by_a_newer_timestamp(siege: Siege) -> None:
    old = siege.present("snapshot")[1].signed.version
    siege.fetch(siege.fleet.release("2.0.0", opset=14))
    _, timestamp = siege.present("timestamp")
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta.version = old
    siege.show("timestamp.json", signed(timestamp, siege.key_of("timestamp")))
    # As after a power cut that took the cache: only the timestamp that is held is in the way.
    forget(siege, "snapshot", "targets", "model", "bin")
    release = siege.fleet.release("3.0.0", opset=15)
    siege.refused(release, Reason.OLD_METADATA)
    recover(siege, release)


def test_targets_taken_back_by_a_newer_snapshot(siege: Siege) -> None:
    siege.fleet.catalogue.publish_document(KEYSET_PATH, siege.fleet.keyset(generation=2))
    siege.fetch(siege.fleet.release("2.0.0", opset=14))
    release = siege.fleet.release("3.0.0", opset=15)

    def back(snapshot: object) -> None:
        snapshot.meta["targets.json"].version -= 1  # type: ignore[attr-defined]

    show_snapshot(siege, back)
    forget(siege, "targets")
    siege.refused(release, Reason.OLD_METADATA)
    recover(siege, siege.fleet.release("4.0.0", opset=16))


def test_role_left_out_by_a_newer_snapshot(siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)

    def without(snapshot: object) -> None:
        del snapshot.meta[f"model.{MODEL}.json"]  # type: ignore[attr-defined]

    show_snapshot(siege, without)
    failed = siege.refused(release, Reason.BAD_METADATA)
    assert "missing" in failed.detail
    recover(siege, siege.fleet.release("3.0.0", opset=15))


def test_old_snapshot_under_the_name_of_the_new_one(siege: Siege) -> None:
    old = siege.fleet.catalogue.read(siege.present("snapshot")[0])
    assert old is not None
    release = siege.fleet.release("2.0.0", opset=14)
    siege.show(siege.present("snapshot")[0], old)
    forget(siege, "snapshot")
    siege.refused(release, Reason.OLD_METADATA)
    recover(siege, release)


@pytest.mark.parametrize("role", ["targets", f"model.{MODEL}"])
def test_old_targets_under_the_name_of_the_new_ones(siege: Siege, role: str) -> None:
    siege.fleet.catalogue.publish_document(KEYSET_PATH, siege.fleet.keyset(generation=2))
    release = siege.fleet.release("2.0.0", opset=14)
    shown, metadata = siege.present(role)
    metadata.signed.version += 1
    # The key is the right one; only the version is not what the snapshot says.
    siege.show(shown, signed(metadata, siege.key_of(role)))
    forget(siege, "targets", "model", "bin")
    siege.refused(release, Reason.OLD_METADATA)
    recover(siege, release)


@pytest.mark.parametrize("role", ["snapshot", "targets", f"model.{MODEL}"])
def test_role_that_expired_below_a_fresh_timestamp(siege: Siege, role: str) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    shown, metadata = siege.present(role)
    metadata.signed.expires -= timedelta(days=4_000)
    siege.show(shown, signed(metadata, siege.key_of(role)))
    forget(siege, "snapshot", "targets", "model", "bin")
    siege.refused(release, Reason.EXPIRED)
    recover(siege, release)

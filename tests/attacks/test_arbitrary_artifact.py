"""Bytes that the fleet's repository does not know are never run, whoever asks for them."""

from __future__ import annotations

import hashlib

import pytest
from tuf.api.metadata import TargetFile

from fleet_contract.errors import Reason
from fleet_contract.manifest import artifact_path, manifest_path
from fleet_contract.trust.directive import ReleaseRef
from tests.attacks.battlefield import Battlefield
from tests.attacks.siege import Siege, signed, stranger
from tests.device_agent.shell.toy_fleet import MODEL


@pytest.mark.slow
def test_director_asks_for_a_release_that_nobody_vouches_for(attacked: Battlefield) -> None:
    attacked.expect_failure(attacked.release(vouched=False), "unknown_target")


def forged_release(siege: Siege) -> ReleaseRef:
    """A release in the store that the repository does not know."""
    manifest = next(data for path, data in siege.fleet.files.items() if "manifests" in path)
    data = manifest.replace(b"1.0.0", b"6.6.6")
    digest = hashlib.sha256(data).hexdigest()
    path = manifest_path(MODEL, digest)
    siege.fleet.files[path] = data
    return ReleaseRef(path, digest)


@pytest.mark.parametrize("role", ["bin", "model", "targets"])
def test_attacker_vouches_with_a_key_of_his_own(siege: Siege, role: str) -> None:
    release = forged_release(siege)
    name = {
        "bin": siege.bin_of(next(path for path in siege.fleet.files if "manifests" in path)),
        "model": f"model.{MODEL}",
        "targets": "targets",
    }[role]
    siege.fleet.catalogue.publish(MODEL, siege.fleet.put_file(b"something new"), [])
    data = siege.fleet.files[release.manifest]
    target = TargetFile(len(data), {"sha256": release.digest}, release.manifest)
    for known in siege.fleet.catalogue.versions():
        if known == name or (role == "bin" and known.startswith("bin.")):
            shown, metadata = siege.present(known)
            metadata.signed.targets[release.manifest] = target
            siege.show(shown, signed(metadata, stranger()))
    # What the device has stored is asked for anew, so that the forgery is looked at.
    for path in (siege.store.folder / "metadata").iterdir():
        if path.name != "root.json":
            path.unlink()
    with pytest.raises(Exception, match=r"bad_signature|unknown_target"):
        siege.fetch(release)
    assert siege.store.load_manifest(release.digest) is None
    siege.give_up()
    siege.fetch(siege.fleet.release("2.0.0", opset=14))


def test_manifest_names_a_file_that_nobody_vouches_for(siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    foreign = siege.fleet.put_file(b"not a model of this fleet")
    known = siege.fleet.artifact_of(14).rpartition("/")[2]
    data = siege.fleet.files[release.manifest].replace(known.encode(), foreign.digest.encode())
    file = siege.fleet.put_file(data)
    siege.fleet.files[manifest_path(MODEL, file.digest)] = data
    siege.fleet.catalogue.publish(MODEL, file, [])
    wrong = ReleaseRef(manifest_path(MODEL, file.digest), file.digest)
    siege.refused(wrong, Reason.UNKNOWN_TARGET)
    assert artifact_path(MODEL, foreign.digest) not in [path for path, _ in siege.fleet.requests]

"""Links that somebody plants in the device's store lead nowhere: not out of it, nor within it.

The attacker may make names in the folders of the store, and wants the agent to write through one
of them, to read another file than it thinks, or never to get a release again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from device_agent.errors import StepFailed
from device_agent.inference.artifact_file import read_verified
from device_agent.shell.catalogue import FOLDER
from device_agent.shell.release_files import Device, open_release
from device_agent.shell.store import Store
from fleet_contract.errors import Reason
from fleet_contract.manifest import FileRef
from tests.attacks.siege import CAPABILITIES, Siege
from tests.device_agent.shell.toy_fleet import MODEL

PRECIOUS = b"precious"
Plant = Callable[[Path, Path], None]


def soft(place: Path, victim: Path) -> None:
    place.symlink_to(victim)


def hard(place: Path, victim: Path) -> None:
    place.hardlink_to(victim)


def pipe(place: Path, _victim: Path) -> None:
    os.mkfifo(place)


PLANTS = pytest.mark.parametrize("plant", [soft, hard, pipe])


def precious(siege: Siege) -> Path:
    """A file of the agent's user outside the store."""
    path = siege.store.folder.parent / "victim"
    path.write_bytes(PRECIOUS)
    return path


@PLANTS
@pytest.mark.parametrize(
    "name",
    [".record.next", "..record.next.new", f"{FOLDER}/.timestamp.json.new", f"{FOLDER}/root.json"],
)
def test_link_where_the_agent_writes(siege: Siege, name: str, plant: Plant) -> None:
    victim = precious(siege)
    place = siege.store.folder / name
    if name.endswith("root.json"):
        plant(place.with_name(".root.json.new"), victim)
    else:
        place.unlink(missing_ok=True)
        plant(place, victim)
    record = siege.store.load_record()
    assert record is not None
    siege.store.save_record(record)
    siege.fetch(siege.fleet.release("2.0.0", opset=14))
    assert victim.read_bytes() == PRECIOUS
    assert siege.store.load_record() == record
    assert Store(siege.store.folder, reserve_bytes=0).load_record() == record


@PLANTS
def test_link_in_the_place_of_a_partial_download(siege: Siege, plant: Plant) -> None:
    victim = precious(siege)
    release = siege.fleet.release("2.0.0", opset=14)
    digest = siege.fleet.artifact_of(14).rpartition("/")[2]
    plant(siege.store.partial(digest), victim)
    siege.fetch(release)
    assert victim.read_bytes() == PRECIOUS
    assert not siege.store.artifact(digest).is_symlink()
    assert siege.store.artifact(digest).lstat().st_nlink == 1


def test_partial_download_that_is_the_running_model(siege: Siege) -> None:
    """A hard link inside the store: going on with the download would write into what runs."""
    running = siege.store.artifact(siege.fleet.artifact_of(13).rpartition("/")[2])
    before = running.read_bytes()
    release = siege.fleet.release("2.0.0", opset=14)
    digest = siege.fleet.artifact_of(14).rpartition("/")[2]
    siege.store.partial(digest).hardlink_to(running)
    siege.fetch(release)
    assert running.read_bytes() == before


@pytest.mark.parametrize("plant", [soft, pipe])
def test_link_in_the_place_of_an_artifact(siege: Siege, plant: Plant) -> None:
    victim = precious(siege)
    release = siege.fleet.release("2.0.0", opset=14)
    path = siege.fleet.artifact_of(14)
    digest = path.rpartition("/")[2]
    size_bytes = len(siege.fleet.files[path])
    # The size of a soft link is the length of its text: this one has the size of the artifact.
    padding = "/" * (size_bytes - len("../..victim"))
    plant(siege.store.artifact(digest), Path("../..") / "victim")
    if plant is soft:
        siege.store.artifact(digest).unlink()
        os.symlink(f"../..{padding}victim", siege.store.artifact(digest))
        assert siege.store.artifact(digest).lstat().st_size == size_bytes
    files = siege.fetch(release)
    assert victim.read_bytes() == PRECIOUS
    assert not files.artifact.is_symlink()
    assert read_verified(files.artifact, FileRef(digest, size_bytes)) == siege.fleet.files[path]


@pytest.mark.parametrize("plant", [soft, pipe])
def test_link_in_the_place_of_a_manifest(siege: Siege, plant: Plant) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    copy = siege.store.folder.parent / "manifest"
    copy.write_bytes(siege.fleet.files[release.manifest])
    place = siege.store.folder / "manifests" / f"{release.digest}.json"
    plant(place, copy)
    with pytest.raises(StepFailed) as caught:
        open_release(siege.store, MODEL, release.digest, Device(CAPABILITIES, {}))
    assert caught.value.reason is Reason.WRONG_HASH
    siege.fetch(release)
    assert not place.is_symlink()


def test_link_in_the_place_of_the_record(siege: Siege) -> None:
    record = siege.store.load_record()
    assert record is not None
    siege.store.save_record(record)
    siege.store.save_record(replace(record, boot=record.boot + 1))
    place = siege.store.folder / "record"
    copy = siege.store.folder.parent / "copy"
    place.rename(copy)
    place.symlink_to(copy)
    assert siege.store.load_record() == record, "the record before is a file, and is believed"
    siege.store.save_record(replace(record, boot=record.boot + 2))
    assert not place.is_symlink()
    assert siege.store.load_record() == replace(record, boot=record.boot + 2)


def test_link_in_the_place_of_the_pinned_root(siege: Siege) -> None:
    """Without its root a device believes nothing: it fails closed, and what runs goes on."""
    place = siege.store.folder / FOLDER / "root.json"
    copy = siege.store.folder.parent / "copy"
    place.rename(copy)
    place.symlink_to(copy)
    release = siege.fleet.release("2.0.0", opset=14)
    siege.refused(release, Reason.BAD_METADATA)
    place.unlink()
    copy.rename(place)
    siege.fetch(release)


def test_folder_of_the_store_that_is_a_link(siege: Siege, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(siege.store.folder / "artifacts")
    (siege.store.folder / "artifacts").symlink_to(elsewhere)
    with pytest.raises(NotADirectoryError):
        Store(siege.store.folder, reserve_bytes=0)
    assert list(elsewhere.iterdir()) == []


def test_sweeping_follows_no_link(siege: Siege) -> None:
    victim = precious(siege)
    for place in ("artifacts", "partial"):
        (siege.store.folder / place / "planted").symlink_to(victim)
        (siege.store.folder / place / "linked").hardlink_to(victim)
    siege.store.sweep([])
    assert victim.read_bytes() == PRECIOUS
    assert sorted(siege.held()) == []

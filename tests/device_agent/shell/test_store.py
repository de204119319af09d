"""The store on flash: damage, links, leftovers, and processes that die between two steps."""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.core.state import Record
from device_agent.errors import StepFailed
from device_agent.shell import flash
from device_agent.shell.store import Store
from fleet_contract.errors import Reason
from fleet_contract.manifest import FileRef
from fleet_contract.trust.keyset import Keyset

DIGEST, OTHER = "a" * 64, "b" * 64


def record(boot: int) -> Record:
    return Record("home", "device-1", Keyset("home", 1, 0, []), boot=boot)


def boot_of(store: Store) -> int | None:
    found = store.load_record()
    return None if found is None else found.boot


def test_folder_is_private(store: Store) -> None:
    for path in (store.folder, *(item for item in store.folder.iterdir())):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    store.save_record(record(1))
    assert stat.S_IMODE((store.folder / "record").stat().st_mode) == 0o600


def test_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "artifacts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"):
        Store(tmp_path / "device")


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\x00" * 4096,
        b"{}",
        b"not json",
        b"0" * 64 + b"\n{}",
    ],
)
def test_damaged_record_gives_way_to_the_one_before(store: Store, damage: bytes) -> None:
    store.save_record(record(1))
    store.save_record(record(2))
    (store.folder / "record").write_bytes(damage)
    assert boot_of(store) == 1


def test_one_flipped_bit_is_noticed(store: Store) -> None:
    store.save_record(record(1))
    store.save_record(record(2))
    path = store.folder / "record"
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    assert boot_of(store) == 1


def test_two_damaged_records_are_none(store: Store) -> None:
    store.save_record(record(1))
    store.save_record(record(2))
    for name in ("record", "record.previous"):
        (store.folder / name).write_bytes(b"damaged")
    assert store.load_record() is None
    store.save_record(record(3))
    assert boot_of(store) == 3


def test_record_that_became_a_folder_gives_way_to_the_one_before(store: Store) -> None:
    store.save_record(record(1))
    store.save_record(record(2))
    (store.folder / "record").unlink()
    (store.folder / "record").mkdir()
    assert boot_of(store) == 1


def test_record_that_became_a_link_is_not_read(store: Store, tmp_path: Path) -> None:
    store.save_record(record(1))
    store.save_record(record(2))
    path = store.folder / "record"
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    assert boot_of(store) == 1


class _Killed(Exception):
    pass


@pytest.mark.parametrize("step", range(12))
def test_killed_at_any_step_of_saving_a_record(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    store.save_record(record(1))
    store.save_record(record(2))
    left = [step]

    def dying(name: str):
        real = getattr(os, name)

        def call(*arguments, **options):
            if left[0] == 0:
                raise _Killed
            left[0] -= 1
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        for name in ("open", "fsync", "rename"):
            patched.setattr(os, name, dying(name))
        try:
            store.save_record(record(3))
            completed = True
        except _Killed:
            completed = False
    assert boot_of(Store(store.folder)) in ((3,) if completed else (2, 3))


def test_full_disk_keeps_the_old_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save_record(record(1))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        store.save_record(record(2))
    assert boot_of(store) == 1
    assert [path.name for path in store.folder.iterdir() if path.name.endswith(".new")] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("NOT ALLOWED HERE: mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_rollback_cannot_be_stored_because_somebody_filled_the_disk(small_disk: Path) -> None:
    store = Store(small_disk / "agent")
    store.save_record(record(1))
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="space"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    store.save_record(record(2))
    assert boot_of(Store(store.folder)) == 2
    filler.unlink()
    store.sweep([])
    with pytest.raises(OSError, match="space"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    store.save_record(record(3))
    assert boot_of(Store(store.folder)) == 3, "the space was set aside again"


def test_errors_of_the_disk_have_the_right_reason() -> None:
    assert flash.failure(OSError(28, "full"), "x").reason is Reason.DISK_FULL
    assert flash.failure(OSError(122, "quota"), "x").reason is Reason.DISK_FULL
    assert flash.failure(OSError(5, "I/O"), "x").reason is Reason.DOWNLOAD_FAILED


def test_sweep_removes_leftovers_and_keeps_what_is_needed(store: Store) -> None:
    for place in ("artifacts", "partial"):
        for name in (DIGEST, OTHER, "strange"):
            (store.folder / place / name).write_bytes(b"x")
    (store.folder / "artifacts" / "link").symlink_to(store.folder / "record")
    store.sweep([DIGEST])
    assert sorted(path.name for path in (store.folder / "artifacts").iterdir()) == [DIGEST]
    assert sorted(path.name for path in (store.folder / "partial").iterdir()) == [DIGEST]


def test_file_of_another_size_does_not_count_as_held(store: Store) -> None:
    store.artifact(DIGEST).write_bytes(b"cut")
    assert store.has(FileRef(DIGEST, 3))
    assert not store.has(FileRef(DIGEST, 10))
    assert not store.has(FileRef(OTHER, 3))


def test_manifest_is_read_only_with_the_right_hash(store: Store) -> None:
    store.save_manifest(DIGEST, b"not what this hash stands for")
    assert store.load_manifest(DIGEST) is None
    with pytest.raises(StepFailed):
        store.load_manifest("../record")

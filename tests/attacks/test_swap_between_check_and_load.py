"""A file exchanged after it was verified, before it is loaded: what is loaded is what was verified.

The attacker may write into the folder of artifacts at any moment. He is given the best one: inside
the very function that hashes, right after the hash was taken, and while the bytes are read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

from device_agent.errors import StepFailed
from device_agent.inference import artifact_file
from device_agent.inference.artifact_file import read_verified
from device_agent.inference.capabilities import tiny_model
from device_agent.inference.session import OnnxRuntime
from device_agent.shell.release_files import Device, drop_damaged, open_release
from device_agent.shell.store import Store as DeviceStore
from fleet_contract.errors import Reason
from tests.attacks.battlefield import Battlefield
from tests.attacks.siege import CAPABILITIES, Siege
from tests.device_agent.shell.toy_fleet import INPUTS, MODEL, OUTPUT

EVIL = tiny_model(opset=20, ir_version=8)
"""A model of the attacker's: it loads, and is none of the fleet's."""


@contextmanager
def after_hashing(path: Path, put: bytes) -> Iterator[list[str]]:
    """Exchange the file in the moment in which its hash has been taken."""
    moments: list[str] = []

    def sha256(data: bytes) -> object:
        taken = hashlib.sha256(data)
        exchange(path, put)
        moments.append(taken.hexdigest())
        return taken

    with mock.patch.object(artifact_file, "hashlib", SimpleNamespace(sha256=sha256)):
        yield moments


def exchange(path: Path, put: bytes) -> None:
    beside = path.with_name("evil")
    beside.write_bytes(put)
    os.replace(beside, path)


def test_exchanged_between_hash_and_load(siege: Siege) -> None:
    files = siege.fetch(siege.fleet.release("2.0.0", opset=14))
    loaded: list[bytes] = []

    def watch(model: bytes, **given: object) -> object:
        loaded.append(model)
        return real(model, **given)  # type: ignore[arg-type]

    from device_agent.inference import session

    real = session.OnnxSession
    with (
        after_hashing(files.artifact, EVIL) as moments,
        mock.patch.object(session, "OnnxSession", watch),
    ):
        answering = OnnxRuntime().load(files.artifact, files.manifest, files.variant)
    assert moments == [files.variant.artifact.digest]
    assert files.artifact.read_bytes() == EVIL, "the attack took place"
    assert [hashlib.sha256(model).hexdigest() for model in loaded] == moments
    assert answering.run(INPUTS)["y"].tolist() == OUTPUT
    # The next start reads the file anew, refuses it, and it can be fetched again.
    with pytest.raises(StepFailed) as caught:
        OnnxRuntime().load(files.artifact, files.manifest, files.variant)
    assert caught.value.reason in (Reason.WRONG_HASH, Reason.WRONG_SIZE)
    drop_damaged(siege.store, files)
    again = siege.fleet.release("3.0.0", opset=14)
    assert siege.fetch(again).artifact.read_bytes() != EVIL


def test_written_into_while_it_is_read(siege: Siege) -> None:
    """The same inode changes under the reader: the hash is that of the bytes that were read."""
    files = siege.fetch(siege.fleet.release("2.0.0", opset=14))
    real = files.artifact.read_bytes()
    with files.artifact.open("r+b") as file:
        file.seek(len(real) - 1)
        file.write(bytes([real[-1] ^ 1]))
    with pytest.raises(StepFailed) as caught:
        read_verified(files.artifact, files.variant.artifact)
    assert caught.value.reason is Reason.WRONG_HASH


def test_exchanged_for_a_link(siege: Siege) -> None:
    files = siege.fetch(siege.fleet.release("2.0.0", opset=14))
    copy = siege.store.folder.parent / "copy"
    files.artifact.rename(copy)
    files.artifact.symlink_to(copy)
    with pytest.raises(StepFailed) as caught:
        read_verified(files.artifact, files.variant.artifact)
    assert caught.value.reason is Reason.DOWNLOAD_FAILED
    with pytest.raises(StepFailed):
        open_release(siege.store, MODEL, files.digest, Device(CAPABILITIES, {}))
    siege.fetch(siege.fleet.release("3.0.0", opset=14))
    assert not files.artifact.is_symlink()


@pytest.mark.slow
def test_exchanged_in_the_store_of_a_running_agent(attacked: Battlefield) -> None:
    """Changed the moment after it was verified and renamed into place, before it is tried."""
    release = attacked.release()
    real = DeviceStore.complete

    def complete(store: DeviceStore, digest: str) -> None:
        real(store, digest)
        if digest == attacked.artifact.digest:
            exchange(store.artifact(digest), EVIL[: attacked.artifact.size_bytes])

    with mock.patch.object(DeviceStore, "complete", complete):
        attacked.expect_failure(release, "wrong_hash", "wrong_size")

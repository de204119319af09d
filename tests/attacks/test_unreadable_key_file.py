"""The device's key file is damaged, or something else lies in its place.

The device must not fall back to anything weaker, enrol anew, or stop answering: it stays offline
with the model that it has, and is back as soon as the file is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device_agent.agent import Agent
from device_agent.shell import mqtt
from device_agent.shell.certificate import PAIR_FILE
from device_agent.shell.clock import SystemClock
from device_agent.shell.identity import FILE_NAME, enrol
from device_agent.shell.store import Store
from device_agent.shell.workshop import Workshop
from fleet_contract.trust.directive import ReleaseRef
from tests.device_agent.shell.toy_fleet import DEVICE, INPUTS, MODEL, ToyFleet


class Besieged:
    """A device with a release that it runs, in a fleet over mutual TLS."""

    def __init__(self, folder: Path, workshop: Workshop) -> None:
        self.folder = folder
        self.workshop = workshop
        self.fleet = ToyFleet(secure=True)
        self.release = self.fleet.release("1.0.0")
        self.fleet.admit()
        self.fleet.direct(self.release)
        enrol(Store(folder), self.fleet.token(), DEVICE, workshop.capabilities, SystemClock())
        self.agent = self.start()
        self.agent.wait_for(MODEL, digest=self.release.digest, timeout_s=60)
        self.spent = self.fleet.posts

    def start(self) -> Agent:
        self.agent = Agent.open(self.folder, workshop=self.workshop)
        self.agent.start()
        return self.agent

    def answers(self) -> str:
        return self.agent.model(MODEL).predict(INPUTS).release

    def online(self, timeout_s: float = 60) -> bool:
        return self.agent._daemon.wait_until(lambda state: state.live.connected, timeout_s)

    def offline(self) -> bool:
        return self.agent._daemon.wait_until(lambda state: not state.live.connected, 60)

    def tried(self, times: int) -> None:
        """Wait until the device has tried so many times more to connect, in vain."""
        births = self.agent._daemon.state.live.births + times
        assert self.agent._daemon.wait_until(lambda state: state.live.births >= births, 60)
        assert not self.agent.status().connected

    def next_release(self) -> ReleaseRef:
        release = self.fleet.release("2.0.0", opset=14)
        self.fleet.direct(release)
        return release


@pytest.fixture
def besieged(
    tmp_path: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Besieged]:
    monkeypatch.setattr(mqtt, "LONGEST_DELAY_MS", 200)
    begun = Besieged(tmp_path / "device", workshop)
    yield begun
    begun.agent.stop()
    begun.fleet.close()


def cut_off(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def nonsense(path: Path) -> None:
    path.write_bytes(b"\x00" * 1000)


def endless(path: Path) -> None:
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\n" * 100_000)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_instead(path: Path) -> None:
    path.rename(path.with_name("elsewhere.pem"))
    path.symlink_to("elsewhere.pem")


def pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def nothing(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "spoil", [cut_off, nonsense, endless, folder_instead, link_instead, pipe_instead, nothing]
)
def test_unreadable_key_file(besieged: Besieged, spoil: Callable[[Path], None]) -> None:
    path = besieged.folder / PAIR_FILE
    good = path.read_bytes()
    # 1. While the device runs: it keeps its model, and its connection ends in being offline.
    spoil(path)
    besieged.fleet.drop_devices()
    assert besieged.offline()
    besieged.tried(3)
    missed = besieged.next_release()
    assert besieged.answers() == besieged.release.digest
    # 2. After a restart it answers as before.
    besieged.agent.stop()
    besieged.start()
    besieged.tried(3)
    assert besieged.answers() == besieged.release.digest
    assert besieged.fleet.posts == besieged.spent, "it asked for another identity"
    # 3. The file is put back: nothing else has to be done.
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(good)
    assert besieged.online()
    besieged.agent.wait_for(MODEL, digest=missed.digest, timeout_s=60)
    assert besieged.fleet.posts == besieged.spent


@pytest.mark.parametrize("spoil", [cut_off, nonsense, folder_instead, link_instead, nothing])
def test_unreadable_identity(besieged: Besieged, spoil: Callable[[Path], None]) -> None:
    """Without addresses it cannot connect by itself, and still it answers."""
    path = besieged.folder / FILE_NAME
    good = path.read_bytes()
    besieged.agent.stop()
    spoil(path)
    besieged.start()
    besieged.tried(2)
    assert besieged.answers() == besieged.release.digest
    besieged.agent.stop()
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(good)
    besieged.start()
    assert besieged.online()
    assert besieged.fleet.posts == besieged.spent

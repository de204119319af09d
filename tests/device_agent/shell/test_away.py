"""A device that was off during ceremonies is lost to the fleet, whatever they were."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_agent.agent import Agent
from device_agent.shell import upkeep
from device_agent.shell.clock import SystemClock
from device_agent.shell.identity import enrol
from device_agent.shell.store import Store
from device_agent.shell.workshop import Workshop
from fleet_contract import topics
from fleet_contract.enrolment import ANCHORS_PATH
from fleet_contract.trust import envelope
from fleet_contract.trust.keyset import KEYSET_PATH, PublicKey
from fleet_server.trust.catalogue import rotation
from fleet_server.trust.catalogue.opening import open_catalogue
from fleet_server.trust.catalogue.raising import raise_above
from tests.device_agent.shell.toy_authority import Issuer, pem_of
from tests.device_agent.shell.toy_fleet import DEVICE, FLEET, INPUTS, MODEL, ToyFleet, public

Ceremony = Callable[[ToyFleet], object]
DIRECTORS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(3, 9)]


def direct_by(fleet: ToyFleet, number: int, generation: int, **changes: object) -> None:
    """Vouch for a director and the next one, and let the former sign from now on."""
    fleet.director, fleet.generation = DIRECTORS[number], generation
    keys = [public(key) for key in DIRECTORS[number : number + 2]]
    listed = [PublicKey(envelope.key_id(raw), raw.hex()) for raw in keys]
    document = fleet.keyset(directors=listed, **changes)
    assert fleet.catalogue.publish_document(KEYSET_PATH, document)


def directors_by_plan(fleet: ToyFleet) -> None:
    for number in range(3):
        direct_by(fleet, number, 1)


def directors_lost(fleet: ToyFleet) -> None:
    for number in (0, 2, 4):
        direct_by(fleet, number, 2 + number, epoch_floor=fleet.next_epoch())


def release_revoked(fleet: ToyFleet) -> None:
    direct_by(fleet, 0, 2, release_floors={MODEL: 2})


def roots(fleet: ToyFleet) -> None:
    for _ in range(3):
        assert rotation.rotate_top(fleet.catalogue, "root", [], 1)
    tell_root(fleet)


def top_targets(fleet: ToyFleet) -> None:
    for _ in range(2):
        assert rotation.rotate_top(fleet.catalogue, "targets", [], 1)


def online(fleet: ToyFleet) -> None:
    for role in (*rotation.ONLINE, *rotation.ONLINE):
        assert rotation.rotate_online(fleet.catalogue, role)
    tell_root(fleet)


def anchors(fleet: ToyFleet) -> None:
    issuer = Issuer("new servers")
    fleet.authority.serve_as(issuer=issuer)
    fleet.catalogue.publish_document(ANCHORS_PATH, pem_of(issuer.certificate))


def server_restored(fleet: ToyFleet) -> None:
    """The backup is of before the device's release, and a director was lost meanwhile."""
    versions = fleet.catalogue.versions()
    top = {role: versions.pop(role) for role in ("root", "timestamp", "snapshot")}
    direct_by(fleet, 2, 2)
    fleet.catalogue = open_catalogue(
        fleet.folder / "backup", may_make=False, random_bytes=os.urandom, now_ms=fleet.now_ms
    )
    seen = {**top, "targets": max(versions.values())}
    assert raise_above(fleet.catalogue, seen, [MODEL]) == []
    direct_by(fleet, 0, 3, epoch_floor=fleet.next_epoch())


def everything(fleet: ToyFleet) -> None:
    for ceremony in (roots, top_targets, online, directors_lost, anchors, roots):
        ceremony(fleet)


def tell_root(fleet: ToyFleet) -> None:
    fleet.publish(topics.root(FLEET), fleet.catalogue.root_bytes)


@pytest.fixture
def start(
    secure_fleet: ToyFleet, tmp_path: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Agent]]:
    monkeypatch.setattr(upkeep, "FIRST_DELAY_MS", 50)
    monkeypatch.setattr(upkeep, "SPREAD_MS", 50)
    folder = tmp_path / "device"
    enrol(Store(folder), secure_fleet.token(), DEVICE, workshop.capabilities, SystemClock())
    agents: list[Agent] = []

    def start() -> Agent:
        agents.append(Agent.open(folder, workshop=workshop))
        agents[-1].start()
        return agents[-1]

    yield start
    for agent in agents:
        agent.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    "ceremony",
    [
        directors_by_plan,
        directors_lost,
        release_revoked,
        roots,
        top_targets,
        online,
        anchors,
        server_restored,
        everything,
    ],
)
def test_device_that_was_off_meanwhile(
    secure_fleet: ToyFleet, start: Callable[[], Agent], ceremony: Ceremony
) -> None:
    shutil.copytree(secure_fleet.folder / "trust", secure_fleet.folder / "backup")
    first = secure_fleet.release("1.0.0")
    secure_fleet.admit()
    secure_fleet.direct(first)
    agent = start()
    agent.wait_for(MODEL, digest=first.digest, timeout_s=60)
    agent.stop()
    ceremony(secure_fleet)
    secure_fleet.admit()
    second = secure_fleet.release("2.0.0", opset=12)
    secure_fleet.direct(second)
    agent = start()
    answer = agent.model(MODEL).predict(INPUTS)
    assert answer.release in (first.digest, second.digest), "it answers meanwhile"
    agent.wait_for(MODEL, digest=second.digest, timeout_s=60)

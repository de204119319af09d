"""A real server in this process, a real agent in a process of its own, and an insider's keys.

The attacks are held against what devices really meet: the real broker, the real store, the real
HTTP API. The insider may publish on every topic, and has the director's key where a test says so:
then it is the device's own checks that must hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from device_agent.shell.workshop import Workshop
from tests.attacks.battlefield import Battlefield
from tests.attacks.siege import Siege


@pytest.fixture(scope="session")
def workshop() -> Iterator[Workshop]:
    """One for all agents of this run: its helper imports the runtime only once."""
    shared = Workshop()
    yield shared
    shared.close()


@pytest.fixture(scope="session")
def battlefield(
    tmp_path_factory: pytest.TempPathFactory, workshop: Workshop
) -> Iterator[Battlefield]:
    """A server and an agent that answers with a good release, under load."""
    field = Battlefield(tmp_path_factory.mktemp("battlefield"), workshop)
    field.open()
    yield field
    field.close()


@pytest.fixture(
    scope="module", params=["embedded", pytest.param("mosquitto", marks=pytest.mark.broker)]
)
def guarded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, workshop: Workshop
) -> Iterator[Battlefield]:
    """The same at each broker that has to tell devices apart."""
    if request.param == "mosquitto":
        request.getfixturevalue("require_mosquitto")
    field = Battlefield(tmp_path_factory.mktemp("guarded"), workshop, broker=request.param)
    field.open()
    yield field
    field.close()


@pytest.fixture
def attacked(battlefield: Battlefield) -> Iterator[Battlefield]:
    """The running model must answer as before, without a failed call, after every attack."""
    with battlefield.unharmed():
        yield battlefield


@pytest.fixture
def siege(tmp_path: Path) -> Iterator[Siege]:
    """A device that has fetched one release, and an attacker between it and the server."""
    begun = Siege.begin(tmp_path / "device")
    yield begun
    begun.fleet.close()

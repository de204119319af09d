"""The toy fleet, and a device enrolled in it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from device_agent.agent import Agent
from device_agent.shell.clock import SystemClock
from device_agent.shell.identity import enrol
from device_agent.shell.store import Store
from device_agent.shell.workshop import Workshop
from tests.device_agent.shell.toy_fleet import DEVICE, ToyFleet


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "device", reserve_bytes=0)


@pytest.fixture
def web() -> Iterator[ToyFleet]:
    """A toy fleet without a broker."""
    fleet = ToyFleet(with_broker=False)
    yield fleet
    fleet.close()


@pytest.fixture
def fleet() -> Iterator[ToyFleet]:
    fleet = ToyFleet()
    yield fleet
    fleet.close()


@pytest.fixture
def secure_web() -> Iterator[ToyFleet]:
    """A toy fleet over https, without a broker."""
    fleet = ToyFleet(with_broker=False, secure=True)
    yield fleet
    fleet.close()


@pytest.fixture
def secure_fleet() -> Iterator[ToyFleet]:
    """A toy fleet over https and mqtts."""
    fleet = ToyFleet(secure=True)
    yield fleet
    fleet.close()


@pytest.fixture(scope="session")
def workshop() -> Iterator[Workshop]:
    """One for the whole test run: the helper of its prober imports the runtime only once."""
    shared = Workshop()
    yield shared
    shared.close()


@pytest.fixture
def start_agent(
    fleet: ToyFleet, tmp_path: Path, workshop: Workshop
) -> Iterator[Callable[..., Agent]]:
    """A maker of running agents, one after another, in one folder that is enrolled once."""
    folder = tmp_path / "device"
    enrol(Store(folder), fleet.token(), DEVICE, workshop.capabilities, SystemClock())
    agents: list[Agent] = []

    def start(**options: Any) -> Agent:
        agent = Agent.open(folder, workshop=workshop, **options)
        agent.start()
        agents.append(agent)
        return agent

    yield start
    for agent in agents:
        agent.stop()

"""A server on either kind of broker, and a light fleet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet_server.broker.listener import EmbeddedBroker
from fleet_server.broker.mosquitto import PrivateMosquitto
from fleet_server.clock import SystemClock
from tests.kill_points.light_fleet import LightFleet
from tests.kill_points.server_room import ServerRoom


class OutlivingBroker:
    """A broker without TLS or rules that belongs to the test, not to the server."""

    def __init__(self, make: Callable[[int], PrivateMosquitto | EmbeddedBroker]) -> None:
        self._make = make
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._broker = make(0)
        self._call(self._broker.start)

    @property
    def url(self) -> str:
        return self._broker.url

    def restart_empty(self, folder: Path) -> None:
        """Lose everything that was retained, as a broker that lost its disk."""
        self._call(self._broker.stop)
        (folder / "mosquitto.db").unlink(missing_ok=True)
        self._broker = self._make(self._broker.port)
        self._call(self._broker.start)

    def close(self) -> None:
        self._call(self._broker.stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def _call(self, work: Callable[[], object]) -> None:
        asyncio.run_coroutine_threadsafe(work(), self._loop).result(60)  # type: ignore[arg-type]


@pytest.fixture
def mosquitto(require_mosquitto: Path, tmp_path: Path) -> Iterator[OutlivingBroker]:
    running = OutlivingBroker(lambda port: PrivateMosquitto(tmp_path / "mosquitto", port))
    yield running
    running.close()


@pytest.fixture
def outliving_embedded() -> Iterator[OutlivingBroker]:
    clock = SystemClock()
    running = OutlivingBroker(lambda port: EmbeddedBroker(port=port, clock=clock.monotonic_ms))
    yield running
    running.close()


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.broker)])
def room(request: pytest.FixtureRequest, tmp_path: Path, free_port: int) -> Iterator[ServerRoom]:
    """A running server; Mosquitto outlives it, the embedded broker (TLS, rules) dies with it."""
    broker = "embedded"
    if request.param == "mosquitto":
        broker = request.getfixturevalue("mosquitto").url
    found = ServerRoom(tmp_path, free_port, broker)
    with found.running():
        yield found


@pytest.fixture(params=["outliving_embedded", pytest.param("mosquitto", marks=pytest.mark.broker)])
def open_room(
    request: pytest.FixtureRequest, tmp_path: Path, free_port: int
) -> Iterator[ServerRoom]:
    """A running server on a broker where anybody may say anything."""
    found = ServerRoom(tmp_path, free_port, request.getfixturevalue(request.param).url)
    with found.running():
        yield found


@pytest.fixture
def light_fleet() -> Iterator[LightFleet]:
    fleet = LightFleet()
    yield fleet
    fleet.close()

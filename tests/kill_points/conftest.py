"""A server on either kind of broker, and a light fleet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet_server.broker.mosquitto import PrivateMosquitto
from tests.kill_points.light_fleet import LightFleet
from tests.kill_points.server_room import ServerRoom


class OutlivingMosquitto:
    """A Mosquitto that belongs to the test, not to the server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._mosquitto = PrivateMosquitto(folder)
        self._call(self._mosquitto.start)

    @property
    def url(self) -> str:
        return self._mosquitto.url

    def restart_empty(self) -> None:
        """Lose everything that was retained, as a broker that lost its disk."""
        self._call(self._mosquitto.stop)
        (self._folder / "mosquitto.db").unlink(missing_ok=True)
        self._mosquitto = PrivateMosquitto(self._folder, self._mosquitto.port)
        self._call(self._mosquitto.start)

    def close(self) -> None:
        self._call(self._mosquitto.stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, work: Callable[[], object]) -> None:
        asyncio.run_coroutine_threadsafe(work(), self._loop).result(20)  # type: ignore[arg-type]


@pytest.fixture
def mosquitto(require_mosquitto: Path, tmp_path: Path) -> Iterator[OutlivingMosquitto]:
    running = OutlivingMosquitto(tmp_path / "mosquitto")
    yield running
    running.close()


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.broker)])
def room(request: pytest.FixtureRequest, tmp_path: Path, free_port: int) -> Iterator[ServerRoom]:
    """A running server; Mosquitto outlives it, the embedded broker dies with it."""
    broker = "embedded"
    if request.param == "mosquitto":
        broker = request.getfixturevalue("mosquitto").url
    found = ServerRoom(tmp_path, free_port, broker)
    with found.running():
        yield found


@pytest.fixture
def light_fleet() -> Iterator[LightFleet]:
    fleet = LightFleet()
    yield fleet
    fleet.close()

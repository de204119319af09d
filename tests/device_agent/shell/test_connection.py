"""The connection to the broker: one event for each end, a will that is kept, a stop at once."""

import queue
import socket
import time
from collections.abc import Iterator

import pytest

from device_agent.core.events import Connected, Disconnected, Event, Received
from device_agent.shell.clock import SystemClock
from device_agent.shell.mqtt import FIRST_DELAY_MS, BrokerAddress, BrokerConnection
from device_agent.shell.tls import unverified
from fleet_contract import topics
from fleet_contract.topics import DeviceChannel
from tests.device_agent.shell.toy_fleet import DEVICE, FLEET, ToyFleet

WILL = topics.device(FLEET, DEVICE, DeviceChannel.ASSIGNMENT)
"""Any topic that the toy fleet does not read will do."""


class Line:
    """A connection and the events that it gave."""

    def __init__(self, url: str) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.connection = BrokerConnection(
            url,
            client_id=DEVICE,
            clock=SystemClock(),
            emit=self.events.put,
            tls=unverified,
        )

    def next(self) -> Event:
        return self.events.get(timeout=15)


@pytest.fixture
def line(fleet: ToyFleet) -> Iterator[Line]:
    line = Line(fleet.broker_url)
    yield line
    line.connection.stop(None)


def test_will_is_said_by_the_broker_when_the_device_is_gone(fleet: ToyFleet, line: Line) -> None:
    line.connection.connect(WILL, b"gone")
    assert isinstance(line.next(), Connected)
    fleet.drop_devices()
    assert isinstance(line.next(), Disconnected)
    line.connection.connect(WILL, b"gone again")
    assert isinstance(line.next(), Connected)
    line.connection.subscribe((WILL,))
    assert line.next() == Received(WILL, b"gone")


def test_published_and_received(line: Line) -> None:
    line.connection.connect(WILL, b"")
    assert isinstance(line.next(), Connected)
    line.connection.subscribe((WILL,))
    payload = b"x" * 200_000
    line.connection.publish(WILL, payload, retain=True)
    assert line.next() == Received(WILL, payload)


def test_no_broker_is_a_disconnection(free_port: int) -> None:
    line = Line(f"mqtt://127.0.0.1:{free_port}")
    line.connection.connect(WILL, b"")
    assert isinstance(line.next(), Disconnected)
    line.connection.publish(WILL, b"", retain=False)
    line.connection.subscribe((WILL,))
    line.connection.unsubscribe((WILL,))
    line.connection.stop((WILL, b""))


def test_server_that_talks_nonsense_is_a_disconnection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        line = Line(f"mqtt://127.0.0.1:{server.getsockname()[1]}")
        line.connection.connect(WILL, b"")
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(100))
            assert isinstance(line.next(), Disconnected)
        line.connection.stop(None)


def test_stop_does_not_wait_for_a_delayed_attempt(free_port: int) -> None:
    line = Line(f"mqtt://127.0.0.1:{free_port}")
    for _ in range(3):
        line.connection.connect(WILL, b"")
        assert isinstance(line.next(), Disconnected)
    line.connection.connect(WILL, b"")
    began = time.monotonic()
    line.connection.stop(None)
    assert time.monotonic() - began < FIRST_DELAY_MS / 1000
    line.connection.connect(WILL, b"")
    assert line.events.empty()


@pytest.mark.parametrize("url", ["", "http://x", "mqtt://", "mqtt:x", "mqtt://[", "mqtt://h:99999"])
def test_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        BrokerAddress(url)


def test_addresses() -> None:
    plain, secure = BrokerAddress("mqtt://broker"), BrokerAddress("mqtts://[::1]:9000")
    assert (plain.host, plain.port, plain.secure) == ("broker", 1883, False)
    assert (secure.host, secure.port, secure.secure) == ("::1", 9000, True)

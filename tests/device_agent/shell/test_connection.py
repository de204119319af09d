"""The connection to the broker: one event for each end, a will that is kept, a stop at once."""

import queue
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from paho.mqtt.client import Client

from device_agent.core.events import Connected, Disconnected, Event, Received
from device_agent.shell import mqtt
from device_agent.shell.clock import SystemClock, share_of
from device_agent.shell.mqtt import HANG_UPS, BrokerAddress, BrokerConnection
from device_agent.shell.tls import Trouble, unverified
from fleet_contract import topics
from fleet_contract.topics import DeviceChannel
from tests.device_agent.shell.toy_authority import ToyAuthority
from tests.device_agent.shell.toy_fleet import DEVICE, FLEET, ToyFleet

WILL = topics.device(FLEET, DEVICE, DeviceChannel.ASSIGNMENT)
"""Any topic that the toy fleet does not read will do."""


class Line:
    """A connection and the events that it gave."""

    def __init__(self, url: str) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.noticed: list[Trouble | None] = []
        self.connection = BrokerConnection(
            url,
            client_id=DEVICE,
            clock=SystemClock(),
            emit=self.events.put,
            tls=unverified,
            notice=self.noticed.append,
        )

    def next(self) -> Event:
        return self.events.get(timeout=60)


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


def test_broker_that_answers_while_the_agent_stops_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        stopped = Line(f"mqtt://127.0.0.1:{server.getsockname()[1]}")
        begin, read = stopped.connection._new_client, Client.loop_read

        def answered_at_the_end(*given: Any) -> Client:
            client = begin(*given)

            def stopped_just_before() -> object:
                # As it is when stop() has found no connection yet that it could end.
                stopped.connection._stopping.set()
                return read(client)

            monkeypatch.setattr(client, "loop_read", stopped_just_before)
            return client

        monkeypatch.setattr(stopped.connection, "_new_client", answered_at_the_end)
        stopped.connection.connect(WILL, b"")
        peer, _ = server.accept()
        with peer:
            peer.sendall(bytes([0x20, 3, 0, 0, 0]))
            thread = stopped.connection._thread
            assert thread is not None
            thread.join(60)
            assert not thread.is_alive()
    assert stopped.events.empty()


@contextmanager
def taciturn_broker(answer: bytes, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A broker over TLS that says this to whoever shakes hands with it, and hangs up."""
    listening = context or ToyAuthority().web
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                peer, _ = server.accept()
                with listening.wrap_socket(
                    peer, server_side=True, do_handshake_on_connect=False
                ) as line:
                    try:
                        line.do_handshake()
                        line.recv(1000)
                        line.sendall(answer)
                    except ssl.SSLError:
                        # The alert is out; it reaches who is not cut off before.
                        while socket.socket.recv(line, 1000):
                            pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"mqtts://127.0.0.1:{server.getsockname()[1]}"
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(60)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt follows the other without a delay."""
    monkeypatch.setattr(mqtt, "FIRST_DELAY_MS", 0)


def attempt(line: Line) -> None:
    line.connection.connect(WILL, b"")
    assert isinstance(line.next(), Disconnected)


@pytest.mark.parametrize("code", [0x86, 0x87, 0x8A])
def test_broker_that_does_not_authorize_this_device_is_noticed(code: int) -> None:
    with taciturn_broker(bytes([0x20, 3, 0, code, 0])) as url:
        line = Line(url)
        attempt(line)
        assert line.noticed == [Trouble.REFUSED]
        line.connection.stop(None)


def test_broker_that_asks_for_a_certificate_is_noticed() -> None:
    with taciturn_broker(b"", ToyAuthority().broker) as url:
        line = Line(url)
        attempt(line)
        assert line.noticed == [Trouble.REFUSED]
        line.connection.stop(None)


@pytest.mark.usefixtures("at_once")
def test_broker_that_is_busy_refuses_nobody() -> None:
    with taciturn_broker(bytes([0x20, 3, 0, 0x89, 0])) as url:
        line = Line(url)
        for _ in range(HANG_UPS + 1):
            attempt(line)
        assert line.noticed == []
        line.connection.stop(None)


@pytest.mark.usefixtures("at_once")
def test_broker_that_hangs_up_again_and_again_may_mean_the_certificate() -> None:
    with taciturn_broker(b"") as url:
        line = Line(url)
        for _ in range(HANG_UPS - 1):
            attempt(line)
        assert line.noticed == []
        attempt(line)
        assert line.noticed == [Trouble.REFUSED]
        line.connection.stop(None)


def test_stop_does_not_wait_for_a_delayed_attempt(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(f"mqtt://127.0.0.1:{free_port}")
    # An attempt that is an hour away, and no one else's.
    real, own = share_of, line.connection._clock
    monkeypatch.setattr(
        mqtt, "share_of", lambda clock, ms: 3_600_000 if clock is own else real(clock, ms)
    )
    line.connection.connect(WILL, b"")
    waiting = line.connection._thread
    assert waiting is not None
    line.connection.stop(None, wait_s=60)
    assert not waiting.is_alive()
    line.connection.connect(WILL, b"")
    assert line.connection._thread is waiting, "nothing is begun after the end"
    assert line.events.empty()


@pytest.mark.parametrize("url", ["", "http://x", "mqtt://", "mqtt:x", "mqtt://[", "mqtt://h:99999"])
def test_address_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        BrokerAddress(url)


def test_addresses() -> None:
    plain, secure = BrokerAddress("mqtt://broker"), BrokerAddress("mqtts://[::1]:9000")
    assert (plain.host, plain.port, plain.secure) == ("broker", 1883, False)
    assert (secure.host, secure.port, secure.secure) == ("::1", 9000, True)

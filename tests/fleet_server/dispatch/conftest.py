"""Real brokers for the tests of dispatch: private, on a free port, and ready to be killed."""

from __future__ import annotations

import asyncio
import getpass
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from fleet_server.broker.listener import EmbeddedBroker
from fleet_server.clock import SystemClock
from fleet_server.dispatch.connection import BrokerAddress

DEADLINE_S = 60.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {DEADLINE_S} s for: {what}")
        time.sleep(0.002)


@pytest.fixture(name="wait_until")
def _wait_until() -> Callable[[Callable[[], object], str], None]:
    return wait_until


class PrivateBroker(Protocol):
    """A broker that forgets everything when it is killed."""

    address: BrokerAddress

    def start(self) -> None: ...

    def kill(self) -> None: ...


class Mosquitto:
    def __init__(self, binary: Path, folder: Path, port: int) -> None:
        self.address = BrokerAddress("127.0.0.1", port)
        self._binary = binary
        self._configuration = folder / "mosquitto.conf"
        self._configuration.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n"
            f"user {getpass.getuser()}\nmax_inflight_messages 1000\n"
            "max_queued_messages 100000\nlog_dest none\nset_tcp_nodelay true\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen([self._binary, "-c", self._configuration])
        wait_until(lambda: _listens(self.address.port), "mosquitto to listen")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Embedded:
    def __init__(self, port: int) -> None:
        self.address = BrokerAddress("127.0.0.1", port)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._broker: EmbeddedBroker | None = None

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        clock = SystemClock()
        self._broker = EmbeddedBroker(port=self.address.port, clock=clock.monotonic_ms)
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._broker.start(), self._loop).result(DEADLINE_S)

    def kill(self) -> None:
        if self._loop is None or self._broker is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._broker.stop(), self._loop).result(DEADLINE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = None


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S):
            return True
    except OSError:
        return False


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.broker)])
def broker(
    request: pytest.FixtureRequest, tmp_path: Path, free_port: int
) -> Iterator[PrivateBroker]:
    """Each test runs against both brokers."""
    made: PrivateBroker
    if request.param == "mosquitto":
        binary: Path = request.getfixturevalue("require_mosquitto")
        made = Mosquitto(binary, tmp_path, free_port)
    else:
        made = Embedded(free_port)
    made.start()
    yield made
    made.kill()


class Probe:
    """A client of its own, to see what the broker holds and to do it harm."""

    def __init__(self, address: BrokerAddress, *filters: str) -> None:
        self.messages: list[mqtt.MQTTMessage] = []
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_message = lambda _, __, message: self.messages.append(message)
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.max_inflight_messages_set(500)
        self._client.connect(address.host, address.port)
        self._client.loop_start()
        if filters:
            options = SubscribeOptions(qos=1, retainAsPublished=True)
            self._client.subscribe([(name, options) for name in filters])
            assert subscribed.wait(DEADLINE_S)

    def retained(self) -> dict[str, bytes]:
        """What the broker holds, as far as it was seen."""
        held = {m.topic: bytes(m.payload) for m in list(self.messages) if m.retain}
        return {topic: payload for topic, payload in held.items() if payload}

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1
    ) -> mqtt.MQTTMessageInfo:
        return self._client.publish(topic, payload, qos, retain)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def probe(broker: PrivateBroker) -> Iterator[Callable[..., Probe]]:
    """``probe(*filters)`` connects one more client to the broker."""
    made: list[Probe] = []

    def make(*filters: str) -> Probe:
        made.append(Probe(broker.address, *filters))
        return made[-1]

    yield make
    for client in made:
        client.close()

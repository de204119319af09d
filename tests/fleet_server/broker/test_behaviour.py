"""What server and agent rely on, over both brokers, with the client that they use: paho-mqtt."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fleet_server.broker.choice import choose

DEADLINE_S = 60.0


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.005)


class PahoClient:
    """A connected paho client that keeps what it receives."""

    def __init__(
        self,
        url: str,
        client_id: str,
        *,
        protocol: Any = mqtt.MQTTv5,
        will: tuple[str, bytes] | None = None,
        comes_back: bool = True,
    ) -> None:
        self.received: list[mqtt.MQTTMessage] = []
        self.granted: list[Any] = []
        self.acknowledged: set[int] = set()
        self.ended: list[Any] = []
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=protocol,
            reconnect_on_failure=comes_back,
        )
        self.client.on_message = lambda _c, _u, message: self.received.append(message)
        self.client.on_subscribe = lambda _c, _u, _mid, codes, _p: self.granted.extend(codes)
        self.client.on_publish = lambda _c, _u, mid, _code, _p: self.acknowledged.add(mid)
        self.client.on_disconnect = lambda _c, _u, _f, code, _p: self.ended.append(code)
        if will is not None:
            self.client.will_set(*will, qos=1, retain=True)
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        self.client.connect(address.hostname, address.port, keepalive=30)
        self.client.loop_start()
        until(self.client.is_connected, "connected")

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        before = len(self.granted)
        self.client.subscribe(topic_filter, qos)
        until(lambda: len(self.granted) > before, "subscribed")

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, properties: Any = None
    ) -> None:
        """Returns once the broker has acknowledged."""
        mid = self.client.publish(topic, payload, 1, retain, properties).mid
        until(lambda: mid in self.acknowledged, "acknowledged")

    def payloads(self) -> list[bytes]:
        return [bytes(message.payload) for message in self.received]

    def die(self) -> None:
        """As a power failure: no DISCONNECT."""
        self.client.loop_stop()
        sock = self.client.socket()
        assert sock is not None
        sock.close()

    def leave(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.broker)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a broker that runs in a thread of its own."""
    if request.param == "mosquitto":
        request.getfixturevalue("require_mosquitto")
    loop = asyncio.new_event_loop()
    broker = choose(request.param, folder=tmp_path, clock=lambda: time.monotonic_ns() // 1_000_000)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(broker.start(), loop).result(DEADLINE_S)
    try:
        yield broker.url
    finally:
        asyncio.run_coroutine_threadsafe(broker.stop(), loop).result(2 * DEADLINE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE_S)
        loop.close()


@pytest.fixture
def connect(url: str) -> Iterator[Callable[..., PahoClient]]:
    clients: list[PahoClient] = []

    def build(client_id: str, **options: Any) -> PahoClient:
        clients.append(PahoClient(url, client_id, **options))
        return clients[-1]

    yield build
    for client in clients:
        client.leave()


Connect = Callable[..., PahoClient]


def test_offline_device_misses_the_directive(connect: Connect) -> None:
    topic = "fleet/v1/home/cohort/lab/detector"
    server = connect("server")
    server.publish(topic, b"first", retain=True)
    server.publish(topic, b"second", retain=True)
    device = connect("device")
    device.subscribe(topic)
    until(lambda: device.payloads() == [b"second"], "the retained message")
    assert device.received[0].retain
    server.publish(topic, b"third", retain=True)
    until(lambda: device.payloads() == [b"second", b"third"], "the live message")
    assert not device.received[1].retain


def test_cleared_directive_comes_back(connect: Connect) -> None:
    server = connect("server")
    server.publish("t/state", b"state", retain=True)
    server.publish("t/state", b"", retain=True)
    device = connect("device")
    device.subscribe("t/state")
    server.publish("t/state", b"marker")
    until(lambda: device.payloads() == [b"marker"], "only what was published later")


def test_dead_device_looks_alive(connect: Connect) -> None:
    server = connect("server")
    server.subscribe("presence/+")
    device = connect("device", will=("presence/device", b"offline"))
    device.publish("presence/device", b"online", retain=True)
    device.die()
    until(lambda: server.payloads() == [b"online", b"offline"], "birth and will")
    late = connect("late")
    late.subscribe("presence/+")
    until(lambda: late.payloads() == [b"offline"], "the will is retained")


def test_leaving_device_looks_dead(connect: Connect) -> None:
    server = connect("server")
    server.subscribe("presence/+")
    device = connect("device", will=("presence/device", b"offline"))
    device.leave()
    server.publish("presence/marker", b"marker")
    until(lambda: server.payloads() == [b"marker"], "no will")


def test_old_connection_of_a_device_stays(connect: Connect) -> None:
    older = connect("device", comes_back=False)  # it would put the newer one out in its turn
    newer = connect("device")
    until(lambda: bool(older.ended), "the older one is closed")
    newer.subscribe("t")
    newer.publish("t", b"works")
    until(lambda: newer.payloads() == [b"works"], "the newer one works")


def test_expired_message_delivered(connect: Connect) -> None:
    server = connect("server")
    expiring = Properties(PacketTypes.PUBLISH)
    expiring.MessageExpiryInterval = 1
    server.publish("t/long", b"long", retain=True)
    attempts = iter(range(100_000))

    def held() -> bool:
        """Whether who comes now still gets the expiring one (answers come in the order asked)."""
        late = connect(f"late{next(attempts)}")
        late.subscribe("t/short")
        late.subscribe("t/long")
        until(lambda: b"long" in late.payloads(), "the lasting one")
        return late.payloads() == [b"short", b"long"]

    def there() -> bool:
        """A machine that is held up for its one second has to be given it again."""
        server.publish("t/short", b"short", retain=True, properties=expiring)
        return held()

    until(there, "there at first")
    until(lambda: not held(), "the expired one is gone")


def test_many_messages_lost_or_reordered(connect: Connect) -> None:
    server = connect("server")
    server.subscribe("reports/#")
    device = connect("device")
    payloads = [b"%d" % number for number in range(3000)]
    for payload in payloads:
        device.client.publish("reports/1", payload, 1)
    until(lambda: len(server.received) == len(payloads), "all reports arrived")
    assert server.payloads() == payloads


def test_user_properties_lost(connect: Connect) -> None:
    properties = Properties(PacketTypes.PUBLISH)
    properties.UserProperty = [("correlation", "abc")]
    properties.ContentType = "application/octet-stream"
    device = connect("device")
    device.subscribe("t")
    connect("server").publish("t", b"x", properties=properties)
    until(lambda: bool(device.received), "delivered")
    received: Any = device.received[0].properties
    assert received.UserProperty == [("correlation", "abc")]
    assert received.ContentType == "application/octet-stream"


def test_old_and_new_protocol_cannot_talk(connect: Connect) -> None:
    old, new = connect("old", protocol=mqtt.MQTTv311), connect("new")
    old.subscribe("to/old")
    new.subscribe("to/new", qos=2)
    old.publish("to/new", b"from old")
    new.publish("to/old", b"from new")
    until(lambda: old.payloads() == [b"from new"], "new to old")
    until(lambda: new.payloads() == [b"from old"], "old to new")


def test_shared_subscription_doubles_work(connect: Connect) -> None:
    workers = [connect(f"worker{number}") for number in range(2)]
    for worker in workers:
        worker.subscribe("$share/workers/jobs")
    sender = connect("sender")
    for number in range(20):
        sender.publish("jobs", b"%d" % number)
    until(lambda: sum(len(worker.received) for worker in workers) >= 20, "all jobs")
    done = sorted(int(payload) for worker in workers for payload in worker.payloads())
    assert done == list(range(20))

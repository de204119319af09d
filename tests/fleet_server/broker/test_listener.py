"""The embedded broker on real sockets, with raw bytes, the lean client and paho-mqtt."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fleet_server.broker.client import MqttClient
from fleet_server.broker.codec import encode
from fleet_server.broker.decoder import Decoder
from fleet_server.broker.errors import (
    ConnectionLostError,
    ConnectionRefusedByBrokerError,
    InsecureListenerError,
    RequestRefusedError,
)
from fleet_server.broker.limits import Limits
from fleet_server.broker.listener import EmbeddedBroker
from fleet_server.broker.packet_types import MQTT_3_1_1, MQTT_5
from fleet_server.broker.packets import (
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    Publish,
    Subscribe,
    SubscriptionRequest,
    Will,
)
from fleet_server.broker.policy import AllowAll, PeerCertificate, Policy
from fleet_server.broker.reason_codes import ReasonCode

DEADLINE_S = 60.0


def clock() -> int:
    return time.monotonic_ns() // 1_000_000


def run(body: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(3 * DEADLINE_S):
            await body

    asyncio.run(bounded())


@asynccontextmanager
async def embedded(policy: Policy | None = None, **limits: int) -> AsyncIterator[EmbeddedBroker]:
    """A broker that bears a machine which stands still while somebody connects."""
    patient = Limits(**{"connect_timeout_ms": int(3_000 * DEADLINE_S), **limits})
    broker = EmbeddedBroker(clock=clock, limits=patient, policy=policy)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


async def until(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert condition(), what


class RawPeer:
    """A socket that says what it is told, however wrong."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.decoder = Decoder(1 << 20)

    @classmethod
    async def open(cls, broker: EmbeddedBroker, *packets: Packet) -> RawPeer:
        peer = cls(*await asyncio.open_connection(broker.host, broker.port))
        for packet in packets:
            peer.writer.write(encode(packet, MQTT_5))
        return peer

    async def read_all(self) -> list[Packet]:
        """Everything until the broker closes."""
        async with asyncio.timeout(DEADLINE_S):
            packets = list(self.decoder.feed(await self.reader.read(-1)))
        self.writer.close()
        return packets


class AuthenticatingPolicy(AllowAll):
    authenticates = True


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "broker.example"])
@pytest.mark.parametrize(
    ("tls", "policy"),
    [
        (None, None),
        (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), None),
        (None, AuthenticatingPolicy()),
    ],
    ids=["open", "tls only", "authentication only"],
)
def test_open_broker_reachable_from_the_network(host: str, tls: Any, policy: Any) -> None:
    with pytest.raises(InsecureListenerError):
        EmbeddedBroker(host, clock=clock, tls=tls, policy=policy)


def test_protected_broker_confined_to_loopback() -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    broker = EmbeddedBroker("0.0.0.0", clock=clock, tls=tls, policy=AuthenticatingPolicy())
    assert broker.url == "mqtts://0.0.0.0:0"


def test_malformed_packet_closes_other_connections() -> None:
    async def body() -> None:
        async with embedded() as broker:
            good = MqttClient("good")
            await good.connect(broker.host, broker.port)
            bad = await RawPeer.open(broker, Connect(client_id="bad"))
            bad.writer.write(b"\xff\xff\xff\xff\xff")
            answers = await bad.read_all()
            assert isinstance(answers[0], ConnAck)
            assert answers[1:] == [Disconnect(ReasonCode.MALFORMED_PACKET)]
            assert await good.publish("t", b"") is ReasonCode.NO_MATCHING_SUBSCRIBERS
            assert broker.statistics()["malformed_packets"] == 1
            await good.disconnect()

    run(body())


def test_reason_lost_because_the_peer_was_still_sending() -> None:
    async def body() -> None:
        async with embedded(max_packet_size_bytes=1000) as broker:
            peer = await RawPeer.open(broker, Connect(client_id="a"))
            peer.writer.write(encode(Publish("t", bytes(3_000_000)), MQTT_5))
            await peer.writer.drain()
            answers = await peer.read_all()
            assert answers[-1] == Disconnect(ReasonCode.PACKET_TOO_LARGE)

    run(body())


def test_slow_reader_fills_the_memory() -> None:
    async def body() -> None:
        async with embedded(max_queued_bytes=4_000_000, max_write_buffer_bytes=4_000_000) as broker:
            subscribe = Subscribe(1, (SubscriptionRequest("t", 1),))
            slow = await RawPeer.open(broker, Connect(client_id="slow"), subscribe)
            transport = slow.writer.transport
            assert isinstance(transport, asyncio.Transport)
            transport.pause_reading()
            watcher_heard: list[bytes] = []
            watcher = MqttClient("w", on_message=lambda p: watcher_heard.append(p.payload))
            await watcher.connect(broker.host, broker.port)
            await watcher.subscribe(SubscriptionRequest("t", 1))
            await until(lambda: broker.statistics()["subscriptions"] == 2, "both subscribed")
            sent = 0
            while broker.statistics()["slow_clients_disconnected"] == 0:
                await watcher.publish("t", bytes(100_000))
                sent += 1
                assert sent < 400, "nothing stops the slow reader's queue"
            await until(lambda: len(watcher_heard) == sent, "the quick reader got everything")
            assert broker.statistics()["connections"] == 1
            transport.abort()
            await watcher.disconnect()

    run(body())


def test_slow_reader_that_recovers_loses_messages() -> None:
    async def body() -> None:
        async with embedded() as broker:
            received: list[bytes] = []
            slow = MqttClient("slow", on_message=lambda packet: received.append(packet.payload))
            await slow.connect(broker.host, broker.port)
            await slow.subscribe(SubscriptionRequest("t", 1))
            transport = slow._transport
            assert transport is not None
            transport.pause_reading()
            sender = MqttClient("sender")
            await sender.connect(broker.host, broker.port)
            payloads = [b"%d" % number + bytes(100_000) for number in range(100)]
            for payload in payloads:
                await sender.publish("t", payload)
            assert not received
            transport.resume_reading()
            await until(lambda: len(received) == len(payloads), "all delivered")
            assert received == payloads
            await slow.disconnect()
            await sender.disconnect()

    run(body())


def test_silent_client_never_noticed() -> None:
    async def body() -> None:
        now_ms = 0
        broker = EmbeddedBroker(clock=lambda: now_ms)
        await broker.start()
        peer = await RawPeer.open(broker, Connect(client_id="a", keep_alive_s=10))
        await until(lambda: broker.statistics()["connections"] == 1, "connected")
        now_ms = 15_000
        answers = await peer.read_all()
        assert answers[-1] == Disconnect(ReasonCode.KEEP_ALIVE_TIMEOUT)
        await broker.stop()

    run(body())


def test_clients_hang_when_the_broker_stops() -> None:
    async def body() -> None:
        ends: list[ReasonCode | None] = []
        async with embedded() as broker:
            client = MqttClient("a", on_end=ends.append)
            await client.connect(broker.host, broker.port)
        await until(lambda: bool(ends), "told of the end")
        assert ends == [ReasonCode.SERVER_SHUTTING_DOWN]
        with pytest.raises(ConnectionLostError):
            await client.publish("t", b"")
        with pytest.raises(OSError):
            await MqttClient("b").connect(broker.host, broker.port)

    run(body())


def test_client_that_resets_while_the_broker_stops() -> None:
    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with embedded() as broker:
            with socket.socket() as peer:
                peer.setblocking(False)
                await loop.sock_connect(peer, (broker.host, broker.port))
                # To MQTT 3.1.1 a server that stops says nothing, so writing does not find out.
                connect = Connect(client_id="a", version=MQTT_3_1_1)
                await loop.sock_sendall(peer, encode(connect, MQTT_3_1_1))
                await loop.sock_recv(peer, 100)
                # Closing resets, and the broker stops before it can have noticed.
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert broker.statistics()["connections"] == 0

    run(body())


def test_refused_client_believes_it_is_connected() -> None:
    class NobodyMayEnter(AllowAll):
        def authenticate(self, connect: Connect, certificate: PeerCertificate | None) -> Any:
            return ReasonCode.BAD_USER_NAME_OR_PASSWORD

    async def body() -> None:
        async with embedded(policy=NobodyMayEnter()) as broker:
            client = MqttClient("a")
            with pytest.raises(ConnectionRefusedByBrokerError) as caught:
                await client.connect(broker.host, broker.port)
            assert caught.value.reason is ReasonCode.BAD_USER_NAME_OR_PASSWORD
            await until(lambda: not client.connected, "closed")

    run(body())


def test_refused_request_believed_to_be_granted() -> None:
    class Silence(AllowAll):
        def may_publish(self, identity: str, topic: str) -> bool:
            return False

        def may_subscribe(self, identity: str, topic_filter: str) -> bool:
            return False

    async def body() -> None:
        async with embedded(policy=Silence()) as broker:
            client = MqttClient("a")
            await client.connect(broker.host, broker.port)
            with pytest.raises(RequestRefusedError):
                await client.publish("t", b"")
            with pytest.raises(RequestRefusedError):
                await client.subscribe(SubscriptionRequest("t", 1))
            await client.disconnect()

    run(body())


def test_client_publishes_more_than_the_broker_takes() -> None:
    async def body() -> None:
        async with embedded(receive_maximum=3) as broker:
            client = MqttClient("a")
            await client.connect(broker.host, broker.port)
            codes = await asyncio.gather(*(client.publish("t", b"") for _ in range(50)))
            assert codes == [ReasonCode.NO_MATCHING_SUBSCRIBERS] * 50
            await client.disconnect()

    run(body())


def test_will_of_a_killed_client_lost() -> None:
    async def body() -> None:
        async with embedded() as broker:
            wills: list[bytes] = []
            watcher = MqttClient("w", on_message=lambda packet: wills.append(packet.payload))
            await watcher.connect(broker.host, broker.port)
            await watcher.subscribe(SubscriptionRequest("presence/+", 1))
            for client_id in ("clean", "killed"):
                will = Will(f"presence/{client_id}", client_id.encode(), qos=1)
                client = MqttClient(client_id, will=will)
                await client.connect(broker.host, broker.port)
                if client_id == "clean":
                    await client.disconnect()
                else:
                    client.drop()
            await until(lambda: bool(wills), "the will arrived")
            assert wills == [b"killed"]
            await watcher.disconnect()

    run(body())


def test_port_is_kept_after_stop() -> None:
    async def body() -> None:
        async with embedded() as broker:
            port = broker.port
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))

    run(body())

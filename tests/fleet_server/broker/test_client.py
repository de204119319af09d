"""The lean client against brokers that vanish, talk nonsense or never answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fleet_server.broker.client import MqttClient
from fleet_server.broker.codec import encode
from fleet_server.broker.errors import ConnectionLostError, PacketError
from fleet_server.broker.listener import EmbeddedBroker
from fleet_server.broker.packet_types import MQTT_5
from fleet_server.broker.packets import ConnAck, SubscriptionRequest
from fleet_server.broker.reason_codes import ReasonCode

HOST = "127.0.0.1"
DEADLINE_S = 60.0


def run(body: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await body

    asyncio.run(bounded())


class Answering(asyncio.Protocol):
    """Says one thing and then nothing more."""

    def __init__(self, answer: bytes, open_transports: list[asyncio.Transport]) -> None:
        self.answer = answer
        self.open_transports = open_transports

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.open_transports.append(transport)
        transport.write(self.answer)


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """The port of a server with one answer."""
    transports: list[asyncio.Transport] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Answering(answer, transports), HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for transport in transports:
            transport.abort()
        await asyncio.sleep(0)


def test_dead_broker_never_noticed() -> None:
    async def body() -> None:
        ended: asyncio.Future[ReasonCode | None] = asyncio.get_running_loop().create_future()
        async with answering(encode(ConnAck(), MQTT_5)) as port:
            client = MqttClient("a", keep_alive_s=1, on_end=ended.set_result)
            await client.connect(HOST, port)
            waiting = asyncio.create_task(client.publish("t", b""))
            assert await ended is ReasonCode.KEEP_ALIVE_TIMEOUT
            with pytest.raises(ConnectionLostError):
                await waiting

    run(body())


async def longest_standstill(duration_s: float) -> float:
    """For how long at most the loop did nothing else while this time passed."""
    longest_s, before = 0.0, time.monotonic()
    end = before + duration_s
    while before < end:
        await asyncio.sleep(0.05)
        now = time.monotonic()
        longest_s, before = max(longest_s, now - before), now
    return longest_s


@pytest.mark.slow
def test_idle_client_cut_off() -> None:
    async def is_kept() -> tuple[bool, float]:
        broker = EmbeddedBroker(clock=lambda: time.monotonic_ns() // 1_000_000)
        await broker.start()
        client = MqttClient("a", keep_alive_s=1)
        await client.connect(broker.host, broker.port)
        # The broker's patience is 1.5 s; there is no event to wait for.
        standstill_s = await longest_standstill(3.5)
        kept = client.connected
        await client.disconnect()
        await broker.stop()
        return kept, standstill_s

    async def body() -> None:
        while True:
            kept, standstill_s = await is_kept()
            if kept:
                return
            # A machine that stands still lets nobody speak: then the scene is played once more.
            assert standstill_s > 0.2, "silent between two questions"

    run(body())


def test_nonsense_from_the_broker_raises_in_the_loop() -> None:
    async def body() -> None:
        ended: asyncio.Future[ReasonCode | None] = asyncio.get_running_loop().create_future()
        async with answering(encode(ConnAck(), MQTT_5) + b"\0\0") as port:
            client = MqttClient("a", on_end=ended.set_result)
            await client.connect(HOST, port)
            assert await ended is ReasonCode.MALFORMED_PACKET
            with pytest.raises(ConnectionLostError):
                client.send("t", b"")

    run(body())


def test_broker_that_never_answers_connect() -> None:
    async def body() -> None:
        ends: list[ReasonCode | None] = []
        async with answering(b"") as port:
            client = MqttClient("a", on_end=ends.append)
            with pytest.raises(TimeoutError):
                await client.connect(HOST, port, timeout_s=0.05)
            while client.connected:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert ends == []  # there was no connection that could end

    run(body())


def test_second_connection_starts_with_the_rest_of_the_first() -> None:
    async def body() -> None:
        broker = EmbeddedBroker(clock=lambda: 0)
        await broker.start()
        client = MqttClient("a")
        async with answering(encode(ConnAck(), MQTT_5) + b"\x30\x7f half a packet") as port:
            await client.connect(HOST, port)
            await client.disconnect()
        await client.connect(broker.host, broker.port)
        assert await client.publish("t", b"") is ReasonCode.NO_MATCHING_SUBSCRIBERS
        await client.disconnect()
        await broker.stop()

    run(body())


def test_qos_2_promised_but_not_kept() -> None:
    with pytest.raises(PacketError):
        run(MqttClient("a").subscribe(SubscriptionRequest("t", 2)))  # type: ignore[arg-type]

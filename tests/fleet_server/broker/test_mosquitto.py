"""The private Mosquitto: it dies, we die, it is not there."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from fleet_server.broker import mosquitto
from fleet_server.broker.client import MqttClient
from fleet_server.broker.errors import MosquittoFailedError, MosquittoMissingError
from fleet_server.broker.mosquitto import PrivateMosquitto
from fleet_server.broker.mosquitto_configuration import configuration
from fleet_server.broker.packets import SubscriptionRequest

DEADLINE_S = 60.0


def run(body: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(3 * DEADLINE_S):
            await body

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def retained(broker: PrivateMosquitto, topic: str) -> bytes:
    received: list[bytes] = []
    client = MqttClient("reader", on_message=lambda packet: received.append(packet.payload))
    await client.connect(broker.host, broker.port)
    await client.subscribe(SubscriptionRequest(topic, 1))
    await until(lambda: bool(received))
    await client.disconnect()
    return received[0]


async def retain(broker: PrivateMosquitto, topic: str, payload: bytes) -> None:
    client = MqttClient("writer")
    await client.connect(broker.host, broker.port)
    await client.publish(topic, payload, retain=True)
    await client.disconnect()


def test_newcomer_without_mosquitto_is_left_in_the_dark(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mosquitto, "find_mosquitto", lambda: None)
    with pytest.raises(MosquittoMissingError, match="apt-get install mosquitto"):
        run(PrivateMosquitto(tmp_path).start())


def test_acknowledged_messages_dropped_by_default_limits(tmp_path: Path) -> None:
    lines = configuration(
        folder=tmp_path, host="127.0.0.1", port=1234, max_packet_size_bytes=4096
    ).splitlines()
    assert "listener 1234 127.0.0.1" in lines
    assert "max_inflight_messages 1000" in lines
    assert "max_queued_messages 100000" in lines
    assert "max_packet_size 4096" in lines


@pytest.mark.broker
def test_broker_killed_and_not_started_again(require_mosquitto: Path, tmp_path: Path) -> None:
    async def body() -> None:
        broker = PrivateMosquitto(tmp_path)
        await broker.start()
        try:
            address, killed = broker.url, broker.pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            await until(lambda: broker.restarts == 1)
            assert broker.pid not in (None, killed)
            assert broker.url == address
            await retain(broker, "t", b"works again")
        finally:
            await broker.stop()
        assert broker.pid is None

    run(body())


@pytest.mark.broker
def test_retained_messages_lost_by_a_restart(require_mosquitto: Path, tmp_path: Path) -> None:
    async def body() -> None:
        for payload in (b"kept", None):
            broker = PrivateMosquitto(tmp_path)
            await broker.start()
            try:
                if payload is not None:
                    await retain(broker, "t", payload)
                else:
                    assert await retained(broker, "t") == b"kept"
            finally:
                await broker.stop()

    run(body())


@pytest.mark.broker
def test_files_that_it_has_not_read_are_taken_for_read(
    require_mosquitto: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        broker = PrivateMosquitto(tmp_path)
        await broker.start()
        try:
            await broker.take_up()
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGSTOP)
            with monkeypatch.context() as hurry:
                hurry.setattr(mosquitto, "_RELOAD_S", 0.2)
                with pytest.raises(MosquittoFailedError, match="did not read its files"):
                    await broker.take_up()
            # One that dies of it reads them when it starts again.
            os.kill(broker.pid, signal.SIGKILL)
            monkeypatch.setattr(mosquitto, "_RELOAD_S", DEADLINE_S)
            await broker.take_up()
            await until(lambda: broker.restarts == 1)
        finally:
            await broker.stop()

    run(body())


@pytest.mark.broker
def test_log_that_grows_for_ever(require_mosquitto: Path, tmp_path: Path) -> None:
    async def body() -> None:
        for _ in range(3):
            broker = PrivateMosquitto(tmp_path)
            await broker.start()
            await broker.stop()

    run(body())
    for name in ("mosquitto.log", "mosquitto.log.1"):
        assert (tmp_path / name).read_text().count(" starting") == 1


@pytest.mark.broker
def test_orphan_of_a_killed_server_holds_the_port(require_mosquitto: Path, tmp_path: Path) -> None:
    async def body() -> None:
        orphan = PrivateMosquitto(tmp_path)
        await orphan.start()
        assert orphan._supervisor is not None
        orphan._supervisor.cancel()  # its server is dead, so nobody watches it any more
        successor = PrivateMosquitto(tmp_path, orphan.port)
        await successor.start()
        try:
            await until(lambda: orphan.pid is None)
            await retain(successor, "t", b"works")
        finally:
            await successor.stop()

    run(body())


@pytest.mark.broker
def test_foreign_process_killed_by_a_stale_number(require_mosquitto: Path, tmp_path: Path) -> None:
    async def body() -> None:
        (tmp_path / "mosquitto.pid").write_text(str(os.getpid()))
        broker = PrivateMosquitto(tmp_path)
        await broker.start()  # we are still here
        await broker.stop()

    run(body())


@pytest.mark.broker
def test_port_of_another_broker_taken_for_ours(
    require_mosquitto: Path, tmp_path: Path, free_port: int
) -> None:
    async def body() -> None:
        first = PrivateMosquitto(tmp_path / "first", free_port)
        await first.start()
        try:
            second = PrivateMosquitto(tmp_path / "second", free_port)
            with pytest.raises(MosquittoFailedError, match="in use"):
                await second.start()
        finally:
            await first.stop()

    run(body())

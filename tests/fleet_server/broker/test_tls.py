"""The embedded broker behind TLS: who a client is comes from its certificate."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from fleet_server.broker.client import MqttClient
from fleet_server.broker.errors import ConnectionRefusedByBrokerError, RequestRefusedError
from fleet_server.broker.listener import EmbeddedBroker
from fleet_server.broker.packets import Connect, SubscriptionRequest
from fleet_server.broker.policy import PeerCertificate
from fleet_server.broker.reason_codes import ReasonCode

DEADLINE_S = 60.0


class CertifiedDevices:
    """A device is who its certificate says, and speaks for itself only."""

    authenticates = True

    def authenticate(
        self, connect: Connect, certificate: PeerCertificate | None
    ) -> str | ReasonCode:
        return certificate.name if certificate else ReasonCode.NOT_AUTHORIZED

    def may_publish(self, identity: str, topic: str) -> bool:
        return topic == f"presence/{identity}"

    def may_subscribe(self, identity: str, topic_filter: str) -> bool:
        return identity == "server"


@pytest.mark.timeout(60)
def test_device_speaks_for_another(authority: Any) -> None:

    async def body() -> None:
        broker = EmbeddedBroker(
            "localhost",
            clock=lambda: time.monotonic_ns() // 1_000_000,
            tls=authority.server(),
            policy=CertifiedDevices(),
        )
        await broker.start()
        received: asyncio.Queue[bytes] = asyncio.Queue()
        server = MqttClient("s", on_message=lambda packet: received.put_nowait(packet.payload))
        await server.connect("localhost", broker.port, tls=authority.client("server"))
        await server.subscribe(SubscriptionRequest("presence/+", 1))
        device = MqttClient("d")
        await device.connect("localhost", broker.port, tls=authority.client("device-1"))
        payload = bytes(300_000)  # more than one buffer of the listener
        await device.publish("presence/device-1", payload)
        assert await received.get() == payload
        with pytest.raises(RequestRefusedError):
            await device.publish("presence/device-2", b"")
        with pytest.raises(ConnectionRefusedByBrokerError) as caught:
            nobody = MqttClient("n", username="server")
            await nobody.connect("localhost", broker.port, tls=authority.client(None))
        assert caught.value.reason is ReasonCode.NOT_AUTHORIZED
        await device.disconnect()
        await server.disconnect()
        await broker.stop()

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await body()

    asyncio.run(bounded())

"""The embedded broker behind TLS: who a client is comes from its certificate."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fleet_server.broker.client import MqttClient
from fleet_server.broker.errors import ConnectionRefusedByBrokerError, RequestRefusedError
from fleet_server.broker.listener import EmbeddedBroker
from fleet_server.broker.packets import Connect, SubscriptionRequest
from fleet_server.broker.reason_codes import ReasonCode

DEADLINE_S = 60.0
ISSUED = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
EXPIRES = datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC)


def name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@dataclass
class Authority:
    """A certificate authority of one test."""

    folder: Path

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.path = self._write("authority", self.key, is_authority=True)

    def issue(self, common_name: str) -> Path:
        """A file with a certificate and its key."""
        return self._write(common_name, ec.generate_private_key(ec.SECP256R1()))

    def _write(
        self, common_name: str, key: ec.EllipticCurvePrivateKey, is_authority: bool = False
    ) -> Path:
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name(common_name))
            .issuer_name(name("authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(ISSUED)
            .not_valid_after(EXPIRES)
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        path = self.folder / f"{common_name}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return path

    def server(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.path))
        context.load_cert_chain(self.issue("localhost"))
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def client(self, common_name: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.path))
        if common_name is not None:
            context.load_cert_chain(self.issue(common_name))
        return context


class CertifiedDevices:
    """A device is who its certificate says, and speaks for itself only."""

    authenticates = True

    def authenticate(self, connect: Connect, certified_name: str | None) -> str | ReasonCode:
        return certified_name or ReasonCode.NOT_AUTHORIZED

    def may_publish(self, identity: str, topic: str) -> bool:
        return topic == f"presence/{identity}"

    def may_subscribe(self, identity: str, topic_filter: str) -> bool:
        return identity == "server"


@pytest.mark.timeout(60)
def test_device_speaks_for_another(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

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

"""Certificates that are in order, and not this fleet's: of another fleet, of nobody, of the server.

The names in them are right, and so are the times. Broker and server must let none of them in, and
the device must take none of them for the server's.
"""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from device_agent.shell.tls import anchored
from fleet_contract import topics
from fleet_server.broker.rules import PUBLISHER, SERVER_IDENTITIES
from fleet_server.clock import SystemClock
from fleet_server.trust.authority import certificates
from fleet_server.trust.authority.authority import SERVER_FILE, Authority, open_authority
from tests.attacks.battlefield import DEADLINE_S, Battlefield
from tests.attacks.identities import Identity, forged_presence, refusal
from tests.attacks.insider import DEVICE, FLEET
from tests.fleet_server.device_key import new_key

pytestmark = pytest.mark.slow
NAMES = [DEVICE, PUBLISHER]


@pytest.fixture
def fleet(guarded: Battlefield) -> Iterator[Battlefield]:
    guarded.wait_until(lambda: guarded.agent.status().connected, "the victim to be there")
    births, agent = guarded.agent._daemon.state.live.births, guarded.device()["agent"]
    with guarded.unharmed():
        yield guarded
        assert guarded.agent._daemon.state.live.births == births, "the victim was thrown out"
        assert guarded.device()["agent"] == agent


def authority_of(folder: Path, fleet: str) -> Authority:
    clock = SystemClock()
    return open_authority(
        folder,
        fleet=fleet,
        hosts=["127.0.0.1"],
        identities=SERVER_IDENTITIES,
        may_make=True,
        random_bytes=clock.random_bytes,
        now_ms=clock.now_ms,
    )


def minted(field: Battlefield, authority: Authority, name: str) -> Identity:
    """A certificate that an authority has issued for this name, and nobody has written down."""
    key = new_key()
    issued = authority.issue(key.public_key(), name, lifetime_ms=certificates.HOUR_MS)
    return Identity(field, name, issued.pem + certificates.write_key(key))


def self_signed(field: Battlefield, name: str) -> Identity:
    key, now = new_key(), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    return Identity(field, name, pem + certificates.write_key(key))


def shut_out(stranger: Identity) -> None:
    """Neither broker nor server even ask who it is: TLS ends it."""
    assert not stranger.enters()
    for attempt in (stranger.fetch, stranger.renew):
        with pytest.raises(httpx.TransportError):
            attempt()


@pytest.mark.parametrize("other", ["other", FLEET])
def test_certificate_of_another_fleet(fleet: Battlefield, tmp_path: Path, other: str) -> None:
    """Also where that fleet, and with it its authority, has the same name."""
    foreign = authority_of(tmp_path / "pki", other)
    for name in NAMES:
        shut_out(minted(fleet, foreign, name))


def test_certificate_that_vouches_for_itself(fleet: Battlefield) -> None:
    for name in NAMES:
        shut_out(self_signed(fleet, name))


def test_certificate_of_the_server_shown_by_a_client(fleet: Battlefield) -> None:
    """It speaks for the server to devices; to the server and its broker it says nothing."""
    stolen = (fleet.anchors.parent / SERVER_FILE).read_bytes()
    for name in NAMES:
        shut_out(Identity(fleet, name, stolen))


def test_no_certificate(fleet: Battlefield) -> None:
    nobody = Identity(fleet, DEVICE)
    assert not nobody.enters()
    assert refusal(nobody.fetch()) == (401, "no_credentials")
    assert refusal(nobody.renew()) == (401, "no_credentials")


def test_certificate_of_the_publisher_shown_to_the_server(fleet: Battlefield) -> None:
    """It is for the broker; behind the devices' door it is no device."""
    stolen = (fleet.anchors.parent / f"{PUBLISHER}.pem").read_bytes()
    for name in NAMES:
        publisher = Identity(fleet, name, stolen)
        assert refusal(publisher.fetch()) == (401, "unknown_certificate")
        assert refusal(publisher.renew()) == (401, "unknown_certificate")


def test_certificate_minted_with_the_stolen_authority(fleet: Battlefield) -> None:
    """It is not written down, so it opens neither the server nor the embedded broker.

    Mosquitto knows the authority alone (see the threat model), and yet it keeps to the rules.
    """
    stolen = fleet.app.state.authority
    intruder = minted(fleet, stolen, "intruder")
    assert refusal(intruder.fetch()) == (401, "unknown_certificate")
    assert refusal(intruder.renew()) == (401, "unknown_certificate")
    if fleet.kind == "embedded":
        assert not intruder.enters()
        assert not minted(fleet, stolen, DEVICE).enters()
    else:
        assert not intruder.says(topics.stop(FLEET), forged_presence())


def test_certificate_of_a_device_shown_by_a_server(fleet: Battlefield, tmp_path: Path) -> None:
    """Devices believe the servers' authority, not their own: no device can be their server."""
    device = Identity.join(fleet, "impostor")
    assert device.enters() and device.fetch().is_success
    (tmp_path / "pair.pem").write_bytes(device.pair)
    shows = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shows.load_cert_chain(tmp_path / "pair.pem")

    async def lure() -> None:
        listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=shows)
        async with listener, asyncio.timeout(DEADLINE_S):
            port = listener.sockets[0].getsockname()[1]
            believes = anchored(fleet.anchors.read_bytes())
            await asyncio.open_connection("127.0.0.1", port, ssl=believes)

    with pytest.raises(ssl.SSLCertVerificationError, match="issuer"):
        asyncio.run(lure())

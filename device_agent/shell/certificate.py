"""The device's key and certificate: made here, kept in one file, checked before they are used.

``device.pem`` holds key and certificate together, so that whatever a power cut leaves is a pair
that matches. ``device-next.key`` is the key for which a certificate is being asked: it outlives a
lost answer, so that asking again is asking for the same. Decides which certificate the device
takes from a server; when it asks for one is decided in :mod:`device_agent.shell.upkeep`.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from device_agent.errors import IdentityUnusable
from device_agent.shell import flash
from fleet_contract import limits

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

PAIR_FILE = "device.pem"
NEXT_KEY_FILE = "device-next.key"
KEY_BYTES = 4 * 1024
"""A P-256 key in PEM takes 241 bytes."""
PAIR_BYTES = KEY_BYTES + limits.CERTIFICATE_BYTES


@dataclass(frozen=True, slots=True)
class Certificate:
    """Who vouches for this device's key, and how long."""

    device: str
    public_key: bytes
    fingerprint: str
    not_before_ms: int
    not_after_ms: int


class CertificateRejected(Exception):
    """A certificate that is not for this device and its key. The message says why."""


def next_key(folder: Path, *, held: bytes = b"") -> EllipticCurvePrivateKey:
    """Return the key to ask a certificate for: the one that waits for an answer, or a new one.

    It is on the disk before anybody learns of it. ``held`` is the public key that shall not be
    certified again. Raises OSError.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    data = flash.read_file(folder / NEXT_KEY_FILE, limit_bytes=KEY_BYTES)
    if data is not None:
        with contextlib.suppress(ValueError):
            key = _read_key(data)
            if _public_of(key) != held:
                return key
    key = ec.generate_private_key(ec.SECP256R1())
    flash.write_file(folder / NEXT_KEY_FILE, _write_key(key))
    return key


def request_for(key: EllipticCurvePrivateKey, device: str) -> str:
    """Return a request in PEM for a certificate of this key in the device's name."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def join(key: EllipticCurvePrivateKey, certificate: str, device: str) -> bytes:
    """Return the pair as :func:`read_pair` takes it, once the certificate is ours.

    Raises:
        CertificateRejected: if it is for another key or another name, or none at all.
    """
    pair = _write_key(key) + certificate.encode()
    _parse(pair, device)
    return pair


def keep(folder: Path, pair: bytes) -> None:
    """Make a joined pair the one that this device shows, durably. Raises OSError."""
    flash.write_file(folder / PAIR_FILE, pair)


def forget_next_key(folder: Path) -> None:
    """End the wait for an answer: the next request is for a new key."""
    with contextlib.suppress(OSError):
        (folder / NEXT_KEY_FILE).unlink()


def read_pair(folder: Path, device: str) -> Certificate:
    """Return what the stored certificate says.

    Raises:
        IdentityUnusable: if key and certificate cannot be read, or are not this device's pair.
    """
    path = folder / PAIR_FILE
    data = flash.read_file(path, limit_bytes=PAIR_BYTES)
    if data is None:
        raise IdentityUnusable(
            f"{path} cannot be read as a file of its own: put it back, or enrol with a new token"
        )
    try:
        return _parse(data, device)
    except CertificateRejected as error:
        raise IdentityUnusable(
            f"{path} cannot be used ({error}): put it back, or enrol with a new token"
        ) from error


def _parse(pair: bytes, device: str) -> Certificate:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    if len(pair) > PAIR_BYTES:
        raise CertificateRejected("it is too long")
    try:
        key = _read_key(pair)
        found = x509.load_pem_x509_certificates(pair)[0]
        names = [
            item.value for item in found.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        ]
        vouched = _public_bytes(found)
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise CertificateRejected("key or certificate is damaged") from error
    if names != [device]:
        raise CertificateRejected(f"the certificate is for {str(names)[:100]}, not {device}")
    public_key = _public_of(key)
    if vouched != public_key:
        raise CertificateRejected("the certificate is for another key")
    encoded = _der(found)
    return Certificate(
        device,
        public_key,
        hashlib.sha256(encoded).hexdigest(),
        int(found.not_valid_before_utc.timestamp() * 1000),
        int(found.not_valid_after_utc.timestamp() * 1000),
    )


def _read_key(data: bytes) -> EllipticCurvePrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(data, None)
    except (TypeError, UnsupportedAlgorithm) as error:
        raise ValueError("no key that this device makes") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("no key that this device makes")
    return key


def _write_key(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public_of(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _public_bytes(found: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _der(found: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return found.public_bytes(Encoding.DER)

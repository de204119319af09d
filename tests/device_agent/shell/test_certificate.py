"""Key and certificate: at whatever point the power goes, what lies there is a pair that matches."""

import base64
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from device_agent.errors import IdentityUnusable
from device_agent.shell import certificate
from device_agent.shell.certificate import (
    NEXT_KEY_FILE,
    PAIR_FILE,
    CertificateRejected,
    join,
    next_key,
    read_pair,
    request_for,
)
from device_agent.shell.tls import Tls
from tests.device_agent.shell.toy_authority import ToyAuthority, new_key, pem_of

DEVICE = "device-1"


class Killed(BaseException):
    """The power went. Nothing in the agent catches it."""


@pytest.fixture(scope="module")
def authority() -> ToyAuthority:
    return ToyAuthority()


def enrolled(folder: Path, authority: ToyAuthority) -> Tls:
    tls = Tls(folder, DEVICE, now_ms=lambda: 0, time_floor_ms=lambda: 0)
    renew(tls, folder, authority)
    return tls


def renew(tls: Tls, folder: Path, authority: ToyAuthority) -> None:
    """Do what the agent does to renew, with an authority that answers at once."""
    path = folder / PAIR_FILE
    held = read_pair(folder, DEVICE).public_key if path.exists() else b""
    key = next_key(folder, held=held)
    tls.save_pair(join(key, authority.certify(request_for(key, DEVICE)), DEVICE))


def test_killed_at_every_point_of_a_renewal(
    tmp_path: Path, authority: ToyAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = -1

    def mortal(work: Callable[..., object]) -> Callable[..., object]:
        def dies(*arguments: object, **options: object) -> object:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return work(*arguments, **options)

        return dies

    points, renewed = 0, False
    for name in ("rename", "fsync", "open"):
        monkeypatch.setattr(os, name, mortal(getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", mortal(Path.unlink))
    while not renewed:
        left = -1
        folder = tmp_path / str(points)
        folder.mkdir()
        tls = enrolled(folder, authority)
        before = read_pair(folder, DEVICE)
        left = points
        try:
            renew(tls, folder, authority)
            renewed = True
        except Killed:
            points += 1
        left = -1
        after = read_pair(folder, DEVICE)
        assert (after == before) or (after.public_key != before.public_key)
        renew(tls, folder, authority)
        assert read_pair(folder, DEVICE).public_key not in (before.public_key, after.public_key)
        assert not (folder / NEXT_KEY_FILE).exists()
    assert points > 10


def test_key_that_waits_for_an_answer_is_asked_for_again(
    tmp_path: Path, authority: ToyAuthority
) -> None:
    first, second = next_key(tmp_path), next_key(tmp_path)
    assert first.private_numbers() == second.private_numbers()
    enrolled(tmp_path, authority)
    assert next_key(tmp_path).private_numbers() != first.private_numbers()


@pytest.mark.parametrize("content", [b"", b"damaged", pem_of(ToyAuthority().devices.certificate)])
def test_waiting_key_that_is_damaged_gives_way(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NEXT_KEY_FILE).write_bytes(content)
    assert next_key(tmp_path).private_numbers() == next_key(tmp_path).private_numbers()


def test_certificate_of_another_key_or_name(tmp_path: Path, authority: ToyAuthority) -> None:
    key, other = next_key(tmp_path), new_key()
    for answer in (
        authority.certify(request_for(other, DEVICE)),
        authority.certify(request_for(key, "device-2")),
        "",
        "nonsense",
        authority.certify(request_for(key, DEVICE)) * 60,
    ):
        with pytest.raises(CertificateRejected):
            join(key, answer, DEVICE)


def test_certificate_with_two_names(tmp_path: Path, authority: ToyAuthority) -> None:
    key = next_key(tmp_path)
    name = x509.NameOID.COMMON_NAME
    both = x509.Name([x509.NameAttribute(name, DEVICE), x509.NameAttribute(name, "device-2")])
    issued = authority.devices.issue(both, key.public_key())
    with pytest.raises(CertificateRejected, match="device-2"):
        join(key, pem_of(issued).decode(), DEVICE)


def test_certificate_with_any_byte_changed_is_no_crash(
    tmp_path: Path, authority: ToyAuthority
) -> None:
    """It is not for the device to check who signed it: it may believe it, or refuse it."""
    key = next_key(tmp_path)
    issued = authority.certify(request_for(key, DEVICE))
    der = x509.load_pem_x509_certificate(issued.encode()).public_bytes(Encoding.DER)
    refused = 0
    for index in range(len(der)):
        broken = bytearray(der)
        broken[index] ^= 0x55
        text = base64.encodebytes(broken).decode()
        answer = f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"
        try:
            join(key, answer, DEVICE)
        except CertificateRejected:
            refused += 1
    assert refused > len(der) // 4


def foreign_keys() -> list[bytes]:
    """A key in PEM that no device makes, and one that is locked."""
    other, own = ed25519.Ed25519PrivateKey.generate(), new_key()
    return [
        other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")),
    ]


def test_pair_that_is_not_one(tmp_path: Path, authority: ToyAuthority) -> None:
    enrolled(tmp_path, authority)
    good = (tmp_path / PAIR_FILE).read_bytes()
    end = good.index(b"-----BEGIN CERTIFICATE")
    for pair in (
        b"",
        b"\xff" * 100,
        good[:-40],
        good[:end],
        good[end:],
        pem_of(new_key()) + good[end:],
        good + b" " * certificate.PAIR_BYTES,
        *(key + good[end:] for key in foreign_keys()),
    ):
        (tmp_path / PAIR_FILE).write_bytes(pair)
        with pytest.raises(IdentityUnusable, match="new token"):
            read_pair(tmp_path, DEVICE)

"""TLS on a device: whom it believes, and by which clock."""

import socket
import ssl
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from device_agent.errors import AnchorsUnusable, IdentityUnusable
from device_agent.shell.certificate import PAIR_FILE, join, next_key, request_for
from device_agent.shell.tls import ANCHORS_FILE, Tls, anchored
from tests.device_agent.shell.toy_authority import LIFE, ToyAuthority, new_key, pem_of

DEVICE = "device-1"


class Device:
    """A device's folder with anchors and pair; ``floor_ms`` is the time that it knows has come."""

    def __init__(self, folder: Path, authority: ToyAuthority) -> None:
        self.folder = folder
        self.floor_ms = 0
        self.tls = Tls(folder, DEVICE, now_ms=lambda: 1000, time_floor_ms=lambda: self.floor_ms)
        self.tls.save_anchors(authority.anchors)
        key = next_key(folder)
        self.tls.save_pair(join(key, authority.certify(request_for(key, DEVICE)), DEVICE))


@pytest.fixture
def authority() -> ToyAuthority:
    return ToyAuthority()


@pytest.fixture
def device(tmp_path: Path, authority: ToyAuthority) -> Device:
    return Device(tmp_path, authority)


@contextmanager
def listening(context: ssl.SSLContext) -> Iterator[int]:
    """A server that shakes hands with whoever comes, on loopback."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(peer, server_side=True) as line:
                    line.sendall(b"welcome")
            except OSError:
                peer.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(60)


def welcome(device: Device, port: int) -> bytes:
    with (
        socket.create_connection(("127.0.0.1", port), 60) as line,
        device.tls.context().wrap_socket(line, server_hostname="127.0.0.1") as secure,
    ):
        return secure.recv(100)


def test_server_of_today(device: Device, authority: ToyAuthority) -> None:
    with listening(authority.broker) as port:
        assert welcome(device, port) == b"welcome"


@pytest.mark.parametrize("ago", [-timedelta(days=1), LIFE + timedelta(days=1)])
def test_clock_that_is_known_to_be_behind_judges_no_certificate(
    device: Device, authority: ToyAuthority, ago: timedelta
) -> None:
    authority.serve_as(ago=ago)
    with listening(authority.broker) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            welcome(device, port)
        device.floor_ms = 2000
        assert welcome(device, port) == b"welcome"


def test_clock_that_is_behind_is_no_reason_to_believe_strangers(
    device: Device, authority: ToyAuthority
) -> None:
    device.floor_ms = 2000
    with listening(ToyAuthority().web) as port, pytest.raises(ssl.SSLCertVerificationError):
        welcome(device, port)
    authority.serve_as("192.0.2.1")
    with listening(authority.web) as port, pytest.raises(ssl.SSLCertVerificationError):
        welcome(device, port)


def test_server_that_speaks_an_old_protocol_only(device: Device, authority: ToyAuthority) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        authority.web.minimum_version = ssl.TLSVersion.TLSv1
        authority.web.maximum_version = ssl.TLSVersion.TLSv1_1
    authority.web.set_ciphers("ALL:@SECLEVEL=0")
    with listening(authority.web) as port, pytest.raises(ssl.SSLError, match=r"(?i)version"):
        welcome(device, port)


def test_context_is_built_anew_only_when_something_changed(
    device: Device, authority: ToyAuthority
) -> None:
    first = device.tls.context()
    assert device.tls.context() is first
    device.tls.save_anchors(authority.anchors + ToyAuthority().anchors)
    second = device.tls.context()
    assert second is not first
    (device.folder / PAIR_FILE).write_bytes((device.folder / PAIR_FILE).read_bytes())
    assert device.tls.context() is not second


@pytest.mark.parametrize("name", [ANCHORS_FILE, PAIR_FILE])
def test_file_that_was_put_back_is_used_again(device: Device, name: str) -> None:
    path = device.folder / name
    good = path.read_bytes()
    path.write_bytes(b"damaged")
    with pytest.raises(IdentityUnusable):
        device.tls.context()
    path.write_bytes(good)
    device.tls.context()


def test_anchors_that_are_lost_can_be_told_from_a_lost_key(device: Device) -> None:
    (device.folder / ANCHORS_FILE).unlink()
    with pytest.raises(AnchorsUnusable):
        device.tls.context()
    (device.folder / PAIR_FILE).unlink()
    with pytest.raises(IdentityUnusable) as caught:
        device.tls.context()
    assert not isinstance(caught.value, AnchorsUnusable)


def test_anchor_that_may_not_vouch_for_others(authority: ToyAuthority) -> None:
    leaf = authority.servers.issue("server", new_key().public_key())
    for anchors in (b"", b"nonsense", "é".encode(), pem_of(leaf)):
        with pytest.raises(ValueError, match=r"certificates|vouch"):
            anchored(anchors)

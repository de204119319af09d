"""TLS as a device speaks it: whom it believes, what it shows, and how it learns that it is refused.

Decides that only the fleet's own anchors vouch for server and broker, by name, from TLS 1.2 on, and
that certificates' times count for nothing while the device's clock is known to be behind. Contexts
are costly, so they are built once for what lies on the disk and kept until that changes. When
anchors and certificate are renewed is decided in :mod:`device_agent.shell.upkeep`.
"""

import hashlib
import os
import ssl
import threading
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from device_agent.errors import AnchorsUnusable, IdentityUnusable, StepFailed
from device_agent.shell import certificate, flash
from device_agent.shell.certificate import PAIR_FILE, Certificate
from fleet_contract import limits
from fleet_contract.errors import Reason

ANCHORS_FILE = "anchors.pem"
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module has no name for."""
_REFUSALS = (
    "ALERT_BAD_CERTIFICATE",
    "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_REQUIRED",
    "ALERT_CERTIFICATE_REVOKED",
    "ALERT_CERTIFICATE_UNKNOWN",
    "ALERT_UNKNOWN_CA",
    "ALERT_UNSUPPORTED_CERTIFICATE",
    # An authority of the same name, but with another key.
    "ALERT_DECRYPT_ERROR",
    "ALERT_ACCESS_DENIED",
)
_Stamp = tuple[int, int, int] | None


class Trouble(Enum):
    """Why a connection did not come about, as far as this device can do something about it."""

    UNVOUCHED = "the anchors vouch for nobody there"
    REFUSED = "this device's certificate is refused"


def trouble_of(error: BaseException) -> Trouble | None:
    """Return what an error of a connection says about anchors or certificate, if it does."""
    if isinstance(error, ssl.SSLCertVerificationError | AnchorsUnusable):
        return Trouble.UNVOUCHED
    if isinstance(error, ssl.SSLError) and any(word in str(error.reason) for word in _REFUSALS):
        return Trouble.REFUSED
    return None


class NotingSocket(ssl.SSLSocket):
    """Remembers in ``refused`` that the peer refused this device's certificate.

    With TLS 1.3 that is said after the handshake, to whoever reads first; paho then tells of a lost
    connection, and nothing else.
    """

    refused = False

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            # paho forgets a socket whose handshake fails.
            self.close()
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except ssl.SSLError as error:
            self.refused = self.refused or trouble_of(error) is Trouble.REFUSED
            raise


def anchored(anchors: bytes, *, check_times: bool = True) -> ssl.SSLContext:
    """Return a context for connections to whom these certificates vouch for, and nobody else.

    Raises:
        ValueError: if they are no certificates in PEM.
    """
    context = _plain()
    try:
        context.load_verify_locations(cadata=anchors.decode("ascii"))
        if not context.cert_store_stats()["x509_ca"]:
            raise ValueError("none of them may vouch for others")
    except (ssl.SSLError, ValueError) as error:
        raise ValueError("these are no certificates") from error
    if not check_times:
        context.verify_flags |= _NO_CHECK_TIME
    return context


def unverified() -> ssl.SSLContext:
    """Return a context that believes anybody: only for what proves itself."""
    context = _plain()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _plain() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = NotingSocket
    return context


class Tls:
    """One device's anchors and pair on flash, and the contexts made of them. Thread-safe."""

    def __init__(
        self,
        folder: Path,
        device: str,
        *,
        now_ms: Callable[[], int],
        time_floor_ms: Callable[[], int],
    ) -> None:
        """Take the store's folder and the device's name; nothing is read yet.

        Args:
            folder: in it lie anchors and pair.
            device: whose certificate it has to be.
            now_ms: the device's clock.
            time_floor_ms: the time before which the device knows that it is not.
        """
        self._folder = folder
        self._device = device
        self._now_ms = now_ms
        self._time_floor_ms = time_floor_ms
        self._lock = threading.Lock()
        self._built: tuple[tuple[_Stamp, _Stamp, bool], ssl.SSLContext] | None = None

    def context(self) -> ssl.SSLContext:
        """Return the context for all connections to server and broker.

        Raises:
            IdentityUnusable: if anchors or pair cannot be read: nothing else will do then.
        """
        check_times = self._now_ms() >= self._time_floor_ms()
        with self._lock:
            built_of = (self._stamp(ANCHORS_FILE), self._stamp(PAIR_FILE), check_times)
            if self._built is None or self._built[0] != built_of:
                self._built = built_of, self._build(check_times)
            return self._built[1]

    def certificate(self) -> Certificate:
        """Return what the stored certificate says. Raises IdentityUnusable."""
        with self._lock:
            return certificate.read_pair(self._folder, self._device)

    def anchors_digest(self) -> str:
        """Return the SHA-256 of the stored anchors, empty if there are none."""
        data = self._read_anchors()
        return "" if data is None else hashlib.sha256(data).hexdigest()

    def save_anchors(self, data: bytes) -> None:
        """Believe whom these certificates vouch for from now on, durably.

        Raises:
            StepFailed: if they are none, or cannot be stored.
        """
        try:
            anchored(data)
            with self._lock:
                flash.write_file(self._folder / ANCHORS_FILE, data)
        except ValueError as error:
            raise StepFailed(Reason.BAD_METADATA, f"anchors: {error}") from error
        except OSError as error:
            raise flash.failure(error, "the anchors cannot be stored") from error

    def save_pair(self, pair: bytes) -> None:
        """Show this joined pair from now on, durably. Raises OSError."""
        with self._lock:
            certificate.keep(self._folder, pair)
            certificate.forget_next_key(self._folder)

    def _build(self, check_times: bool) -> ssl.SSLContext:
        certificate.read_pair(self._folder, self._device)
        anchors = self._read_anchors()
        try:
            context = anchored(anchors or b"", check_times=check_times)
        except ValueError as error:
            raise AnchorsUnusable(
                f"{self._folder / ANCHORS_FILE} cannot be read: it is fetched again while the "
                "server answers"
            ) from error
        try:
            # Without a password given the library would ask a person for that of a locked key.
            context.load_cert_chain(self._folder / PAIR_FILE, password="")
        except OSError as error:
            raise IdentityUnusable(f"key and certificate cannot be used: {error}") from error
        return context

    def _read_anchors(self) -> bytes | None:
        return flash.read_file(self._folder / ANCHORS_FILE, limit_bytes=limits.ANCHORS_BYTES)

    def _stamp(self, name: str) -> _Stamp:
        try:
            status = os.lstat(self._folder / name)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

"""The fleet's own authorities: their keys and files, and the TLS contexts made from them.

Decides what lies in the folder ``pki`` (mode 0600, made once and whole, read afterwards) and how
TLS is spoken: with at least 1.2, with certificates of this fleet alone. Which certificates are
believed beyond that is written in the database, so that a stolen key of an authority mints nothing
that this server believes.
"""

import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from fleet_contract import codec, limits
from fleet_contract.errors import Refused
from fleet_server.errors import StartError
from fleet_server.trust import durable
from fleet_server.trust.authority import certificates
from fleet_server.trust.authority.certificates import DAY_MS, Issued, Issuer, RandomBytes
from fleet_server.trust.authority.gaps import read_gaps
from fleet_server.trust.authority.making import STATE_FILE, make_authorities, write_authority
from fleet_server.trust.authority.standing import Authorities, Line, Member, Standing

ANCHORS_FILE = "anchors.pem"
CLIENTS_FILE = "clients.pem"
KNOWN_FILE = "known-clients.pem"
REVOKED_FILE = "revoked.pem"
SERVER_FILE = "server.pem"
SERVER_DAYS = 90
OWN_DAYS = 30
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python does not name."""


class Authority:
    """The authorities of one fleet. Thread-safe."""

    def __init__(
        self,
        folder: Path,
        *,
        fleet: str,
        hosts: Sequence[str],
        identities: Sequence[str],
        random_bytes: RandomBytes,
        now_ms: Callable[[], int],
        made_now: bool,
    ) -> None:
        self.folder = folder
        self.made_now = made_now
        self._fleet = fleet
        self._hosts = list(hosts)
        self._identities = list(identities)
        self._random_bytes = random_bytes
        self._now_ms = now_ms
        self._lock = threading.RLock()
        data = (folder / STATE_FILE).read_bytes()
        self._authorities = codec.decode_json(data, Authorities, limit_bytes=limits.STATUS_BYTES)
        self._gaps = read_gaps(folder)
        self._issuers: dict[str, Issuer] = {}
        self._own: set[str] = set()
        self._serving: list[ssl.SSLContext] = []
        self._read()
        self.refresh()

    # --- what is handed out ---------------------------------------------------------------------

    @property
    def anchors(self) -> bytes:
        """The certificates, in PEM, that vouch for the server and the broker."""
        return (self.folder / ANCHORS_FILE).read_bytes()

    def issue(self, public_key: object, name: str, *, lifetime_ms: int) -> Issued:
        """Return a certificate for a device."""
        with self._lock:
            return certificates.issue_client(
                self._issuing(Line.DEVICE),
                public_key,  # type: ignore[arg-type]
                name=name,
                fleet=self._fleet,
                random_bytes=self._random_bytes,
                now_ms=self._now_ms(),
                lifetime_ms=lifetime_ms,
            )

    def is_own(self, fingerprint: str) -> bool:
        """Say whether a certificate is one that this server shows to the broker."""
        return fingerprint in self._own

    def believes(self, issuer: str) -> bool:
        """Say whether certificates of an authority, by its fingerprint, are believed."""
        with self._lock:
            return any(
                certificates.fingerprint(self._issuers[item.name].certificate) == issuer
                for item in self._authorities.believed(Line.DEVICE)
            )

    def members(self, line: Line) -> list[Member]:
        """Return the authorities of a line, the oldest first."""
        with self._lock:
            return list(self._authorities.line(line))

    def forgotten(self, der: bytes) -> Issued | None:
        """Return what would have been written down of a device's certificate in a time of which
        this server remembers nothing; None if it is not of such a time, or not by an authority
        that is believed.
        """
        if not self._gaps.gaps:
            return None
        try:
            certificate = x509.load_der_x509_certificate(der)
        except certificates.UNREADABLE:
            return None
        with self._lock:
            for item in self._authorities.believed(Line.DEVICE):
                issuer = self._issuers[item.name]
                try:
                    certificate.verify_directly_issued_by(issuer.certificate)
                except (ValueError, TypeError, InvalidSignature):
                    continue
                issued = certificates.describe(certificate, issuer)
                return issued if self._gaps.cover(issued.issued_ms) else None
        return None

    # --- TLS ------------------------------------------------------------------------------------

    def door(self) -> ssl.SSLContext:
        """Return what the HTTP door of devices speaks.

        A certificate is asked for, not demanded: enrolment has none. One that has expired is let
        through, since it may renew; who looks at it looks at the time.
        """
        context = self._server_context(KNOWN_FILE)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= NO_CHECK_TIME
        return context

    def broker(self) -> ssl.SSLContext:
        """Return what the embedded broker speaks: nobody comes in without a certificate."""
        context = self._server_context(CLIENTS_FILE)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self, identity: str) -> ssl.SSLContext:
        """Return what the server's own clients speak to the broker, under that identity."""
        return self._client_context(self.folder / f"{identity}.pem")

    def stand_in(self, identity: str) -> ssl.SSLContext:
        """Return what shows a certificate of a device's name for a moment, to take its place."""
        key = certificates.new_key(self._random_bytes)
        issued = self.issue(key.public_key(), identity, lifetime_ms=certificates.HOUR_MS)
        path = self.folder / f".stand-in-{issued.serial}.pem"
        durable.write_file(path, issued.pem + certificates.write_key(key))
        try:
            return self._client_context(path)
        finally:
            path.unlink()

    def write_revocations(self, serials: Mapping[str, Sequence[str]]) -> None:
        """Write the list that Mosquitto reads; ``serials`` are by authority's fingerprint."""
        with self._lock:
            lists = []
            for member in self._authorities.believed(Line.DEVICE):
                issuer = self._issuers[member.name]
                own = serials.get(certificates.fingerprint(issuer.certificate), ())
                lists.append(certificates.revocation_list(issuer, own, now_ms=self._now_ms()))
            durable.write_file(self.folder / REVOKED_FILE, b"".join(lists))

    # --- change ---------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Issue anew what the server itself shows, where half of its life is over.

        Returns:
            Whether anything changed.

        Raises:
            OSError: if it cannot be written.
        """
        with self._lock:
            changed = self._renew_server()
            self._own = set()
            for identity in self._identities:
                changed = self._renew_own(identity) or changed
            if changed:
                for context in self._serving:
                    context.load_cert_chain(self.folder / SERVER_FILE)
            return changed

    def rotate(self, line: Line, *, stolen: bool = False) -> None:
        """Begin with a new authority. For devices it issues from now on; what server and broker
        show it issues once the rotation is finished, or at once if the old one was ``stolen``.

        Raises:
            Conflict: if an earlier rotation is not finished. OSError: if it cannot be written.
        """
        with self._lock:
            after = self._authorities.rotated(line, stolen=stolen)
            write_authority(
                self.folder,
                after.issuing(line).name,
                certificates.make_authority(
                    f"{self._fleet} {line}s",
                    random_bytes=self._random_bytes,
                    now_ms=self._now_ms(),
                ),
            )
            self._take(after)

    def finish(self, line: Line) -> None:
        """Stop believing the authority from before the rotation.

        Raises:
            Conflict: if there is nothing to finish. OSError: if it cannot be written.
        """
        with self._lock:
            before = {item.name for item in self._authorities.line(line)}
            self._take(self._authorities.finished(line))
            for gone in before - {item.name for item in self._authorities.line(line)}:
                (self.folder / f"{gone}.key").unlink(missing_ok=True)

    # --- how ------------------------------------------------------------------------------------

    def _take(self, after: Authorities) -> None:
        durable.write_file(self.folder / STATE_FILE, codec.encode_json(after))
        self._authorities = after
        self._read()
        self.refresh()

    def _read(self) -> None:
        """Read the keys, and write what follows from who is believed."""
        members = [*self._authorities.device, *self._authorities.server]
        known = []
        for member in members:
            certificate = x509.load_pem_x509_certificate(
                (self.folder / f"{member.name}.pem").read_bytes()
            )
            if member.standing is Standing.RENEWS:
                known.append(certificate)
                (self.folder / f"{member.name}.key").unlink(missing_ok=True)
                continue
            key = certificates.read_key((self.folder / f"{member.name}.key").read_bytes())
            if key.public_key() != certificate.public_key():
                raise ValueError(f"{member.name}.key is not the key of {member.name}.pem")
            self._issuers[member.name] = Issuer(certificate, key)
        clients = self._pem(self._authorities.believed(Line.DEVICE))
        durable.write_file(self.folder / CLIENTS_FILE, clients)
        renewing = b"".join(item.public_bytes(Encoding.PEM) for item in known)
        durable.write_file(self.folder / KNOWN_FILE, clients + renewing)
        anchors = self._pem(self._authorities.believed(Line.SERVER))
        durable.write_file(self.folder / ANCHORS_FILE, anchors)
        for context in self._serving:
            context.load_verify_locations(self.folder / KNOWN_FILE)

    def _pem(self, members: Sequence[Member]) -> bytes:
        return b"".join(
            self._issuers[item.name].certificate.public_bytes(Encoding.PEM) for item in members
        )

    def _issuing(self, line: Line) -> Issuer:
        return self._issuers[self._authorities.issuing(line).name]

    def _renew_server(self) -> bool:
        # During an overlap the older one: a device may know no other yet.
        older = self._authorities.believed(Line.SERVER)[-1]
        path, issuer = self.folder / SERVER_FILE, self._issuers[older.name]
        if _is_good(path, issuer, self._now_ms(), SERVER_DAYS, self._hosts):
            return False
        key = certificates.new_key(self._random_bytes)
        issued = certificates.issue_server(
            issuer,
            key.public_key(),
            hosts=self._hosts,
            random_bytes=self._random_bytes,
            now_ms=self._now_ms(),
            lifetime_ms=SERVER_DAYS * DAY_MS,
        )
        durable.write_file(path, issued.pem + certificates.write_key(key))
        return True

    def _renew_own(self, identity: str) -> bool:
        path, issuer = self.folder / f"{identity}.pem", self._issuing(Line.DEVICE)
        changed = not _is_good(path, issuer, self._now_ms(), OWN_DAYS)
        if changed:
            key = certificates.new_key(self._random_bytes)
            issued = self.issue(key.public_key(), identity, lifetime_ms=OWN_DAYS * DAY_MS)
            durable.write_file(path, issued.pem + certificates.write_key(key))
        shown = x509.load_pem_x509_certificate(path.read_bytes())
        self._own.add(certificates.fingerprint(shown))
        return changed

    def _server_context(self, authorities: str) -> ssl.SSLContext:
        with self._lock:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(self.folder / SERVER_FILE)
            context.load_verify_locations(self.folder / authorities)
            self._serving.append(context)
            return context

    def _client_context(self, path: Path) -> ssl.SSLContext:
        with self._lock:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_verify_locations(self.folder / ANCHORS_FILE)
            context.load_cert_chain(path)
            return context


def open_authority(
    folder: Path,
    *,
    fleet: str,
    hosts: Sequence[str],
    identities: Sequence[str],
    may_make: bool,
    random_bytes: RandomBytes,
    now_ms: Callable[[], int],
) -> Authority:
    """Return the authorities in ``folder``, made there if the folder does not exist.

    Args:
        folder: of their keys and certificates.
        fleet: whose devices get certificates.
        hosts: names and addresses under which devices reach server and broker.
        identities: names of the server's own clients of the broker.
        may_make: whether no device can have a certificate yet.
        random_bytes: for keys and serial numbers.
        now_ms: for the certificates' times.

    Raises:
        StartError: if it is there and cannot be used, is missing though it must not be, or cannot
            be written.
    """
    made_now = not folder.exists()
    try:
        if made_now:
            if not may_make:
                raise unreadable("its folder is missing")
            make_authorities(folder, fleet=fleet, random_bytes=random_bytes, now_ms=now_ms())
        return Authority(
            folder,
            fleet=fleet,
            hosts=hosts,
            identities=identities,
            random_bytes=random_bytes,
            now_ms=now_ms,
            made_now=made_now,
        )
    except (OSError, ValueError, KeyError, StopIteration, TypeError, Refused) as error:
        where = Path(error.filename).name if isinstance(error, OSError) and error.filename else ""
        # Say which file without saying what is in it.
        raise unreadable(f"{type(error).__name__} {where}".strip()) from error


def unreadable(why: str) -> StartError:
    """Return the error of a folder that cannot be used; fail closed."""
    return StartError(
        "pki_unusable",
        f"The fleet's certificate authorities cannot be used: {why}.",
        "Restore the folder pki of the data folder from its backup, or mend its permissions. "
        "Do not delete it: devices believe the authorities in it and no others.",
    )


def _is_good(path: Path, issuer: Issuer, now_ms: int, days: int, hosts: Sequence[str] = ()) -> bool:
    """Say whether a certificate of ours need not be made anew."""
    try:
        data = path.read_bytes()
        certificate = x509.load_pem_x509_certificate(data)
        certificates.read_key(data)
        certificate.verify_directly_issued_by(issuer.certificate)
    except (OSError, ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature):
        return False
    left_ms = certificates.milliseconds(certificate.not_valid_after_utc) - now_ms
    if hosts:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if list(names) != [certificates.host_name(host) for host in hosts]:
            return False
    return days * DAY_MS / 2 <= left_ms <= days * DAY_MS

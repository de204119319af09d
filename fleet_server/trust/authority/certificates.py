"""X.509 as this fleet uses it: P-256, short subjects, one purpose a certificate.

Decides the form of authorities, certificates, requests and revocation lists. Who may have one is
decided by callers. Randomness and time are arguments; signatures of ECDSA draw from the system.
"""

import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fleet_contract import limits
from fleet_server.errors import Invalid

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
BACKDATED_MS = HOUR_MS
"""Certificates begin so long before they are made: clocks of devices are not exact."""
AUTHORITY_MS = 3_650 * DAY_MS

_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Order of the group of P-256 (FIPS 186-5)."""

UNREADABLE = (
    ValueError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What cryptography raises on a certificate or a request that is not well formed: some when it is
loaded, some when a part of it is asked for."""

RandomBytes = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Issuer:
    """An authority that can sign: its certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate as it is handed out and written down.

    ``name`` is whom it names, ``fingerprint`` is the SHA-256 of its DER form, ``key_hash`` that of
    its public key's, ``serial`` and ``issuer`` (the authority's fingerprint) are hexadecimal, too.
    """

    pem: bytes
    name: str
    fingerprint: str
    serial: str
    key_hash: str
    issuer: str
    issued_ms: int
    not_after_ms: int


def new_key(random_bytes: RandomBytes) -> ec.EllipticCurvePrivateKey:
    """Return a private key on P-256."""
    # 16 bytes more than the order make the remainder as good as uniform (FIPS 186-5, A.2.1).
    drawn = int.from_bytes(random_bytes(48), "big")
    return ec.derive_private_key(drawn % (_ORDER - 1) + 1, ec.SECP256R1())


def make_authority(what: str, *, random_bytes: RandomBytes, now_ms: int) -> Issuer:
    """Return a new authority. Its subject is unlike any other's: TLS finds an issuer by that."""
    key = new_key(random_bytes)
    name = _name(f"{what} {random_bytes(6).hex()}", "")
    builder = _builder(name, name, key.public_key(), random_bytes, now_ms, AUTHORITY_MS)
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    return Issuer(builder.sign(key, hashes.SHA256()), key)


def issue_client(
    issuer: Issuer,
    public_key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey,
    *,
    name: str,
    fleet: str,
    random_bytes: RandomBytes,
    now_ms: int,
    lifetime_ms: int,
) -> Issued:
    """Return a certificate that says who a client is, and is good for nothing else."""
    builder = _builder(
        _name(name, fleet),
        issuer.certificate.subject,
        public_key,
        random_bytes,
        now_ms,
        lifetime_ms,
    )
    builder = _for_purpose(builder, issuer, ExtendedKeyUsageOID.CLIENT_AUTH)
    return describe(builder.sign(issuer.key, hashes.SHA256()), issuer)


def issue_server(
    issuer: Issuer,
    public_key: ec.EllipticCurvePublicKey,
    *,
    hosts: Sequence[str],
    random_bytes: RandomBytes,
    now_ms: int,
    lifetime_ms: int,
) -> Issued:
    """Return a certificate for the hosts, names or addresses, under which a server is reached."""
    builder = _builder(
        _name(hosts[0], ""),
        issuer.certificate.subject,
        public_key,
        random_bytes,
        now_ms,
        lifetime_ms,
    )
    names = x509.SubjectAlternativeName([host_name(host) for host in hosts])
    builder = builder.add_extension(names, critical=False)
    builder = _for_purpose(builder, issuer, ExtendedKeyUsageOID.SERVER_AUTH)
    return describe(builder.sign(issuer.key, hashes.SHA256()), issuer)


def common_name(certificate: x509.Certificate) -> str:
    """Return whom a certificate names, empty if it names nobody or more than one."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def describe(certificate: x509.Certificate, issuer: Issuer) -> Issued:
    """Return what is written down of a certificate."""
    return Issued(
        pem=certificate.public_bytes(Encoding.PEM),
        name=common_name(certificate),
        fingerprint=fingerprint(certificate),
        serial=f"{certificate.serial_number:x}",
        key_hash=key_hash(certificate.public_key()),  # type: ignore[arg-type]
        issuer=fingerprint(issuer.certificate),
        issued_ms=milliseconds(certificate.not_valid_before_utc) + BACKDATED_MS,
        not_after_ms=milliseconds(certificate.not_valid_after_utc),
    )


def revocation_list(issuer: Issuer, serials: Iterable[str], *, now_ms: int) -> bytes:
    """Return the list, in PEM, of an authority's revoked serial numbers (hexadecimal).

    It is a file of the broker's, made anew with every change: so it does not end before its
    authority does. A broker refuses everybody whose list has ended.
    """
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject)
    builder = builder.last_update(_time(now_ms - BACKDATED_MS))
    builder = builder.next_update(issuer.certificate.not_valid_after_utc)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16))
        entry = entry.revocation_date(_time(now_ms - BACKDATED_MS))
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def read_request(pem: str, name: str) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
    """Return the public key in a request for a certificate of this name.

    Raises:
        Invalid: if it is none, is for another name, is not signed by its own key, or if the key is
            neither of P-256 nor Ed25519.
    """
    if len(pem) > limits.CERTIFICATE_BYTES:
        raise _bad_request("it is too large")
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = request.public_key()
        is_own = request.is_signature_valid
    except (*UNREADABLE, UnsupportedAlgorithm, InvalidSignature) as error:
        raise _bad_request("it cannot be read") from error
    if [item.value for item in names] != [name]:
        raise _bad_request(f"its common name is not {name}")
    is_p256 = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    if not (is_p256 or isinstance(key, ed25519.Ed25519PublicKey)):
        raise _bad_request("its key is neither of P-256 nor Ed25519")
    if not is_own:
        raise _bad_request("it is not signed by its own key")
    return key  # type: ignore[return-value]


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate's DER form in hexadecimal."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def key_hash(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> str:
    """Return the SHA-256 of a public key's DER form in hexadecimal."""
    data = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(data).hexdigest()


def write_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key in PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    """Return the private key in PEM data. Raises ValueError if it is none of P-256."""
    key = load_pem_private_key(data, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not a key of an elliptic curve")
    return key


def milliseconds(time: datetime) -> int:
    """Return a time as milliseconds since 1970."""
    return int(time.timestamp()) * 1000


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey,
    random_bytes: RandomBytes,
    now_ms: int,
    lifetime_ms: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        # 159 bits: a serial number is positive and has 20 bytes at most (RFC 5280, 4.1.2.2).
        .serial_number(int.from_bytes(random_bytes(20), "big") >> 1 | 1)
        .not_valid_before(_time(now_ms - BACKDATED_MS))
        .not_valid_after(_time(now_ms + lifetime_ms))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _for_purpose(
    builder: x509.CertificateBuilder, issuer: Issuer, purpose: x509.ObjectIdentifier
) -> x509.CertificateBuilder:
    own = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    builder = builder.add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    )
    builder = builder.add_extension(_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    return builder.add_extension(own, critical=False)


def _usage(**wanted: bool) -> x509.KeyUsage:
    every = [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ]
    return x509.KeyUsage(**{use: wanted.get(use, False) for use in every})


def _name(common_name: str, organisation: str) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organisation:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
    return x509.Name(parts)


def host_name(host: str) -> x509.GeneralName:
    """Return a host, a name or an address, as certificates name it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _time(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms // 1000, UTC)


def _bad_request(why: str) -> Invalid:
    return Invalid(
        "bad_certificate_request",
        f"The request for a certificate cannot be granted: {why}.",
        "Let the agent make it: device-agent enroll TOKEN.",
    )

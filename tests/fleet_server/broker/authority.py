"""A certificate authority of one test: issues, and takes back."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ISSUED = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
EXPIRES = datetime.datetime(2120, 1, 1, tzinfo=datetime.UTC)
LOOPBACK = ipaddress.ip_address("127.0.0.1")


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@dataclass
class Authority:
    """One key that issues everything; ``files`` and ``serials`` are those of each name's newest."""

    folder: Path
    serials: dict[str, int] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    revoked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.path = self._write(self.folder.name, self.key, is_authority=True)
        self.revocations = self.folder / "revoked.pem"
        self.write_revocations()

    def issue(self, common_name: str) -> Path:
        """A file with a certificate and its key."""
        return self._write(common_name, ec.generate_private_key(ec.SECP256R1()))

    def revoke(self, common_name: str) -> None:
        self.revoked.append(self.serials[common_name])
        self.write_revocations()

    def write_revocations(self) -> None:
        builder = x509.CertificateRevocationListBuilder().issuer_name(_name(self.folder.name))
        builder = builder.last_update(ISSUED).next_update(EXPIRES)
        for serial in self.revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(ISSUED)
            builder = builder.add_revoked_certificate(entry.build())
        listed = builder.sign(self.key, hashes.SHA256())
        self.revocations.write_bytes(listed.public_bytes(serialization.Encoding.PEM))

    def _write(
        self, common_name: str, key: ec.EllipticCurvePrivateKey, is_authority: bool = False
    ) -> Path:
        names = [x509.DNSName("localhost"), x509.IPAddress(LOOPBACK)]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(_name(self.folder.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(ISSUED)
            .not_valid_after(EXPIRES)
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        self.serials[common_name] = certificate.serial_number
        der = certificate.public_bytes(serialization.Encoding.DER)
        self.fingerprints[common_name] = hashlib.sha256(der).hexdigest()
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
        """What a client of this name connects with; a new certificate each time."""
        context = ssl.create_default_context(cafile=str(self.path))
        if common_name is not None:
            context.load_cert_chain(self.issue(common_name))
        return context

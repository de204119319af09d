"""The certificates of a toy fleet: an authority for its servers, one for its devices.

Contexts are changed in place, so that what listens already meets devices with what is new.
"""

import ipaddress
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
LIFE = timedelta(days=7)

Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def pem_of(*parts: Key | x509.Certificate) -> bytes:
    found = b""
    for part in parts:
        if isinstance(part, x509.Certificate):
            found += part.public_bytes(Encoding.PEM)
        else:
            found += part.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return found


class Issuer:
    """One certificate authority."""

    def __init__(self, name: str) -> None:
        self.key = new_key()
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = self._builder(self.name, self.key.public_key(), LIFE * 100)
        self.certificate = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        ).sign(self.key, hashes.SHA256())

    def issue(
        self,
        name: str | x509.Name,
        public_key: ec.EllipticCurvePublicKey,
        *,
        addresses: tuple[str, ...] = (),
        life: timedelta = LIFE,
        ago: timedelta = timedelta(hours=1),
    ) -> x509.Certificate:
        """Vouch for a key; ``life`` begins ``ago``, and less than that has expired."""
        if isinstance(name, str):
            name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = self._builder(name, public_key, life, ago)
        if addresses:
            names = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def _builder(
        self,
        subject: x509.Name,
        public_key: ec.EllipticCurvePublicKey,
        life: timedelta,
        ago: timedelta = timedelta(hours=1),
    ) -> x509.CertificateBuilder:
        begin = datetime.now(UTC) - ago
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + life)
        )


class ToyAuthority:
    """Both authorities, and the contexts of what listens."""

    def __init__(self) -> None:
        self.servers = Issuer("toy servers")
        self.devices = Issuer("toy devices")
        self.life, self.ago = LIFE, timedelta(hours=1)
        self.web = self._listening(ssl.CERT_OPTIONAL)
        # The server lets an expired certificate renew; the broker lets it do nothing.
        self.web.verify_flags |= NO_CHECK_TIME
        self.broker = self._listening(ssl.CERT_REQUIRED)
        self.serve_as()

    @property
    def anchors(self) -> bytes:
        return pem_of(self.servers.certificate)

    def serve_as(
        self, address: str = "127.0.0.1", *, issuer: Issuer | None = None, ago: timedelta = LIFE / 2
    ) -> None:
        """Let web server and broker show a new certificate from now on."""
        key = new_key()
        certificate = (issuer or self.servers).issue(
            "server", key.public_key(), addresses=(address,), ago=ago
        )
        for context in (self.web, self.broker):
            load(context, pem_of(key, certificate))

    def certify(self, request: str, name: str = "") -> str:
        """Issue a device's certificate for a request, in its own name or another."""
        read = x509.load_pem_x509_csr(request.encode())
        assert read.is_signature_valid
        asked = str(read.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)
        public_key = read.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey)
        issued = self.devices.issue(name or asked, public_key, life=self.life, ago=self.ago)
        return pem_of(issued).decode()

    def client(self, name: str) -> ssl.SSLContext:
        """Return a context of somebody whom the broker takes."""
        key = new_key()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.anchors.decode())
        load(context, pem_of(key, self.devices.issue(name, key.public_key())))
        return context

    def _listening(self, mode: ssl.VerifyMode) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = mode
        context.load_verify_locations(cadata=pem_of(self.devices.certificate).decode())
        return context


def load(context: ssl.SSLContext, pair: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(pair)
        context.load_cert_chain(file.name)

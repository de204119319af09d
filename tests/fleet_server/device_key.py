"""A device's key as a test needs it: it asks for a certificate, and shows it."""

from __future__ import annotations

import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fleet_contract import codec
from fleet_contract.enrolment import EnrolmentAnswer, EnrolmentRequest, read_token
from fleet_contract.manifest import Capabilities
from fleet_server.trust.authority import certificates

DEADLINE_S = 60.0


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass
class DeviceKey:
    """A key, and the newest certificate for it."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    certificate: str = ""

    def csr(self, name: str) -> str:
        """A request for a certificate of this name."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        request = builder.sign(self.key, hashes.SHA256())
        return request.public_bytes(Encoding.PEM).decode()

    def request(self, token: str, name: str, capabilities: Capabilities) -> EnrolmentRequest:
        return EnrolmentRequest(read_token(token).secret, name, capabilities, self.csr(name))

    def enrol(
        self, devices_url: str, token: str, name: str, capabilities: Capabilities, anchors: Path
    ) -> EnrolmentAnswer:
        """Spend a token at a server's door for devices."""
        body = codec.encode_json(self.request(token, name, capabilities))
        with httpx.Client(
            base_url=devices_url, verify=self.context(anchors), timeout=DEADLINE_S
        ) as client:
            answer = client.post("/v1/devices/enrol", content=body)
        assert answer.status_code == 201, answer.text
        read = codec.decode_json(answer.content, EnrolmentAnswer, limit_bytes=65_536)
        self.certificate = read.certificate
        return read

    def context(self, anchors: Path) -> ssl.SSLContext:
        """What the device connects with; before it has a certificate it shows none."""
        context = ssl.create_default_context(cafile=str(anchors))
        if self.certificate:
            with tempfile.NamedTemporaryFile(suffix=".pem") as file:
                file.write(self.certificate.encode() + certificates.write_key(self.key))
                file.flush()
                context.load_cert_chain(file.name)
        return context

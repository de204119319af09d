"""The parsers of X.509: a device's request as the server reads it, and the device's own pair.

The fuzzer's bytes are DER; they are dressed as PEM here, so that none is lost on its base64.
"""

from __future__ import annotations

import base64
import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from device_agent.shell import certificate
from fleet_server.trust.authority import certificates

KEY = ec.derive_private_key(7, ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "device-1")])


def read_request(data: bytes) -> object:
    return certificates.read_request(_pem("CERTIFICATE REQUEST", data), "device-1")


def read_answer(data: bytes) -> object:
    """What a device joins to its key is what a server, or whoever passes for it, answered."""
    return certificate.join(KEY, _pem("CERTIFICATE", data), "device-1")


def _pem(label: str, data: bytes) -> str:
    text = base64.encodebytes(data).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n"


def requests() -> list[bytes]:
    builder = x509.CertificateSigningRequestBuilder().subject_name(NAME)
    made = builder.sign(KEY, hashes.SHA256(), ecdsa_deterministic=True)
    return [made.public_bytes(Encoding.DER)]


def answers() -> list[bytes]:
    made = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2096, 1, 1, tzinfo=datetime.UTC))
        .sign(KEY, hashes.SHA256(), ecdsa_deterministic=True)
    )
    return [made.public_bytes(Encoding.DER)]

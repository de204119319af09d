"""The parsers of what says where a model comes from: bundles of others, and our own statements.

Both are also reached behind a right signature, by a key of the fuzzer's own.
"""

import base64
import hashlib
import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from fleet_contract import codec
from fleet_contract.trust import envelope
from fleet_server.provenance import bundle, statement
from fleet_server.provenance.policy import Authority, Policy, Rule

BUNDLES = Path(__file__).parents[1] / "fleet_server" / "provenance" / "bundles"
NOW_MS = 1_795_000_000_200
KEY = ec.derive_private_key(7, ec.SECP256R1())
MODEL = hashlib.sha256((BUNDLES / "model.onnx").read_bytes()).hexdigest()


def _policy() -> Policy:
    public = load_pem_public_key((BUNDLES / "secp256r1.pem").read_bytes())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    roots = x509.load_pem_x509_certificates((BUNDLES / "authority.pem").read_bytes())
    authority = Authority(roots, ["ann@example.org"])
    return Policy([Rule("*", True, [("team vision", public)], [authority])])


POLICY = _policy()


def read_bundle(data: bytes) -> object:
    """A bundle as it is uploaded."""
    return POLICY.examine("detector", MODEL, data, now_ms=NOW_MS)


def read_signed(data: bytes) -> object:
    """What a bundle says, under a right signature."""
    encoded = envelope.pre_authentication_encoding(bundle.PAYLOAD_TYPE, data)
    signature = KEY.sign(encoded, ec.ECDSA(hashes.SHA256()))
    signed = bundle.Signed("0" * 64, "", [], data, signature)
    bundle.verify(signed, KEY.public_key(), MODEL)
    return None


def read_statement(data: bytes) -> object:
    """A statement of our own, as a store that somebody else wrote may have it."""
    sealed = envelope.Envelope(base64.b64encode(data).decode(), statement.PAYLOAD_TYPE, [])
    stated = statement.read_unproven(codec.encode_json(sealed))
    return statement.differences(stated, {"model": MODEL}, {"a": MODEL})


def bundles() -> list[bytes]:
    return [(BUNDLES / name).read_bytes() for name in ("secp256r1.sig", "certificate.sig")]


def payloads() -> list[bytes]:
    found = [json.loads(data)["dsseEnvelope"]["payload"] for data in bundles()]
    return [base64.b64decode(text) for text in found]


def statements() -> list[bytes]:
    run = statement.Run({"model": MODEL}, {"a": MODEL}, {"model": "detector"}, {}, "c-1", NOW_MS)
    return [statement.seal(run, statement.Attester("home", lambda kind, payload: payload))]

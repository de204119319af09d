"""Bundles that the real tool wrote, a policy that believes them, and one's own bundles."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fleet_server.provenance import bundle
from fleet_server.provenance.policy import Policy, load_policy

BUNDLES = Path(__file__).parent / "bundles"


@pytest.fixture
def bundles() -> Path:
    return BUNDLES


@pytest.fixture
def model_digest() -> str:
    return hashlib.sha256((BUNDLES / "model.onnx").read_bytes()).hexdigest()


@pytest.fixture
def write_policy(tmp_path: Path) -> Callable[..., Policy]:
    """Writes a policy beside the keys that the bundles were made with, and reads it."""

    def write(**changed: Any) -> Policy:
        for path in BUNDLES.glob("*.pem"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        rule = {
            "models": "detector*",
            "required": True,
            "keys": {"team vision": "secp256r1.pem", "team audio": "secp384r1.pem"},
            "certificates": [{"ca": "authority.pem", "identities": ["*@example.org"]}],
            **changed,
        }
        path = tmp_path / "policy.json"
        path.write_text(json.dumps({"families": [rule]}))
        return load_policy(str(path))

    return write


@pytest.fixture
def own_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def sign(own_key: ec.EllipticCurvePrivateKey, model_digest: str) -> Callable[..., bytes]:
    """Makes a bundle by a key of the test; keyword arguments change what it says."""

    def make(**changed: Any) -> bytes:
        resources = changed.get(
            "resources", [{"name": ".", "algorithm": "sha256", "digest": model_digest}]
        )
        total = hashlib.sha256(b"".join(bytes.fromhex(item["digest"]) for item in resources))
        stated = {
            "_type": bundle.STATEMENT_TYPE,
            "predicateType": changed.get("predicate_type", bundle.PREDICATE_TYPE),
            "subject": [
                {"name": "m", "digest": {"sha256": changed.get("total", total.hexdigest())}}
            ],
            "predicate": {
                "serialization": {"method": changed.get("method", "files")},
                "resources": resources,
            },
        }
        payload = json.dumps(stated).encode()
        kind = changed.get("payload_type", bundle.PAYLOAD_TYPE).encode()
        encoded = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
        signature = own_key.sign(encoded, ec.ECDSA(hashes.SHA256()))
        material = changed.get("material", {"publicKey": {"hint": changed.get("hint", "")}})
        if "chain" in changed:
            listed = [{"rawBytes": base64.b64encode(item).decode()} for item in changed["chain"]]
            material = {"x509CertificateChain": {"certificates": listed}}
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
                "verificationMaterial": {"tlogEntries": [], **material},
                "dsseEnvelope": {
                    "payload": base64.b64encode(payload).decode(),
                    "payloadType": kind.decode(),
                    "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
                },
            }
        ).encode()

    return make

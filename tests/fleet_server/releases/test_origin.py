"""Guards from a release whose files are not what its statement says they were made of."""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fleet_contract.trust import envelope
from fleet_server.audit import service as audit
from fleet_server.errors import NotFound
from fleet_server.provenance import bundle
from fleet_server.provenance.policy import Policy, Rule
from fleet_server.releases import origin
from fleet_server.releases.origin import Signature
from fleet_server.rollouts import compliance

KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def staged(bench: Any, staging: Any, push: Callable[..., Any]) -> Any:
    assert push().status_code == 202
    record = bench.settled()
    assert record.state == "staged", record.problem
    return record


def test_statement_names_all_that_went_in_and_came_out(
    bench: Any, staging: Any, staged: Any, client: Any
) -> None:
    answer = client.get("/v1/models/detector/releases/1.0.0/provenance").json()
    assert (answer["signature"], answer["findings"]) == ("believed", [])
    assert answer["digest"] == staged.provenance
    proof = origin.prove(staged, staging.store, bench.keyring.checkpoint_keys())
    assert proof.envelope.decode() == answer["envelope"]
    # The audit has its digest: a key that is stolen later cannot write another past.
    with bench.database.reading() as session:
        entries = audit.of_release(session, "detector", "1.0.0")
    assert [e.detail["provenance"] for e in entries if e.action == "release.stage"] == [
        answer["digest"]
    ]


def test_statement_that_was_swapped_in_the_store_is_not_shown(
    bench: Any, staging: Any, staged: Any, client: Any
) -> None:
    path = bench.folder / "store" / "provenance" / "detector" / f"{staged.provenance}.json"
    path.write_bytes(path.read_bytes().replace(b"payload", b"paxload", 1))
    answer = client.get("/v1/models/detector/releases/1.0.0/provenance")
    assert answer.status_code == 404
    assert answer.json()["type"].endswith(":provenance_lost")


def test_statement_of_a_key_that_retired_is_told_apart(
    bench: Any, staging: Any, staged: Any
) -> None:
    proof = origin.prove(staged, staging.store, {"0" * 64: bytes(32)})
    assert (proof.signature, proof.findings) == (Signature.FORMER, [])


def test_release_with_another_source_is_found(bench: Any, staging: Any, staged: Any) -> None:
    upload = dataclasses.replace(staged.upload, source_digest="f" * 64)
    other = dataclasses.replace(staged, upload=upload)
    proof = origin.prove(other, staging.store, bench.keyring.checkpoint_keys())
    assert "the model went in as" in proof.findings[0]


def test_release_without_a_statement_says_so(bench: Any, staging: Any) -> None:
    record = bench.register(bench.upload())
    with pytest.raises(NotFound, match="no statement"):
        origin.prove(record, staging.store, {})


@pytest.fixture
def sign() -> Callable[..., bytes]:
    """Signs a file as model-signing does, by one key; the policy of the test believes it."""

    def make(data: bytes) -> bytes:
        digest = hashlib.sha256(data).hexdigest()
        total = hashlib.sha256(bytes.fromhex(digest)).hexdigest()
        stated = {
            "_type": bundle.STATEMENT_TYPE,
            "predicateType": bundle.PREDICATE_TYPE,
            "subject": [{"name": "model.onnx", "digest": {"sha256": total}}],
            "predicate": {
                "serialization": {"method": "files"},
                "resources": [{"name": ".", "algorithm": "sha256", "digest": digest}],
            },
        }
        payload = json.dumps(stated).encode()
        encoded = envelope.pre_authentication_encoding(bundle.PAYLOAD_TYPE, payload)
        signature = KEY.sign(encoded, ec.ECDSA(hashes.SHA256()))
        hint = bundle.fingerprint(KEY.public_key())
        sealed = {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": bundle.PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode()}],
        }
        return json.dumps(
            {
                "mediaType": bundle.MEDIA_TYPE + "v0.3+json",
                "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
                "dsseEnvelope": sealed,
            }
        ).encode()

    return make


@pytest.fixture
def demanding(client: Any) -> Any:
    """A client of a server that demands signatures of every model."""
    client.app.state.provenance_policy = Policy(
        [Rule("*", True, [("team vision", KEY.public_key())], [])]
    )
    return client


def test_signed_model_is_recorded_with_its_signer(
    bench: Any, demanding: Any, push: Any, sign: Any, classifier: Any
) -> None:
    model = classifier().SerializeToString()
    signature = sign(model)
    assert push(model=model, signature=signature).status_code == 202
    bench.settled()
    shown = demanding.get("/v1/models/detector/releases/1.0.0").json()
    digest = hashlib.sha256(signature).hexdigest()
    assert (shown["state"], shown["origin"]["identity"]) == ("staged", "team vision")
    assert (shown["origin"]["method"], shown["origin"]["bundle"]) == ("key", digest)
    assert shown["origin"]["fingerprint"] == bundle.fingerprint(KEY.public_key())
    # The very bundle is kept, and the audit says whose it was.
    path = bench.folder / "store" / "provenance" / "detector" / f"{digest}.json"
    assert path.read_bytes() == signature
    with bench.database.reading() as session:
        entries = audit.of_release(session, "detector", "1.0.0")
        report = compliance.report(session, "home", "detector", "1.0.0")
    pushed = next(entry for entry in entries if entry.action == "release.push")
    assert pushed.detail["signature"]["identity"] == "team vision"
    assert report.provenance["signature"]["bundle"] == digest
    assert report.provenance["statement"]
    assert not any("signature" in line for line in report.not_known)


@pytest.mark.parametrize(
    ("signature", "status", "code"),
    [
        (b"", 422, "signature_required"),
        (b"{}", 422, "bad_bundle"),
        (b"x" * (bundle.BUNDLE_BYTES + 1), 413, "field_too_large"),
        (None, 422, "other_model_signed"),
    ],
)
def test_model_that_is_not_signed_as_demanded_leaves_nothing(
    bench: Any,
    demanding: Any,
    push: Any,
    sign: Any,
    signature: bytes | None,
    status: int,
    code: str,
) -> None:
    given = {"signature": sign(b"another model") if signature is None else signature}
    answer = push(**(given if given["signature"] else {}))
    assert answer.status_code == status, answer.text
    assert answer.json()["type"].endswith(f":{code}")
    assert list((bench.folder / "incoming").iterdir()) == []
    assert bench.stored() == []
    assert demanding.get("/v1/models").json() == {"models": []}


def test_unsigned_model_is_said_to_be_unsigned(bench: Any, staged: Any, client: Any) -> None:
    assert client.get("/v1/models/detector/releases/1.0.0").json()["origin"] is None
    with bench.database.reading() as session:
        report = compliance.report(session, "home", "detector", "1.0.0")
    assert "who made the model: the push had no signature" in report.not_known

"""Guards from a signature that is not by whom it says, or not about what is pushed.

The bundles were written by model-signing itself: see make_bundles.py.
"""

from __future__ import annotations

import base64
import datetime
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, strategies

from fleet_server.errors import Invalid
from fleet_server.provenance import bundle
from fleet_server.provenance.policy import Authority, Policy, Rule

NOW_MS = 1_795_000_000_000
CENTURY_MS = 100 * 365 * 86_400_000


def _code(call: Callable[[], Any]) -> str:
    with pytest.raises(Invalid) as caught:
        call()
    assert caught.value.advice
    return caught.value.code


def _own(key: ec.EllipticCurvePrivateKey) -> Policy:
    return Policy([Rule("*", True, [("me", key.public_key())], [])])


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        ("secp256r1.sig", "team vision"),
        ("secp256r1-folder.sig", "team vision"),
        ("secp384r1.sig", "team audio"),
        ("secp384r1-folder.sig", "team audio"),
        ("certificate.sig", "ann@example.org"),
    ],
)
def test_what_the_tool_signed_is_believed(
    bundles: Path, write_policy: Any, model_digest: str, name: str, identity: str
) -> None:
    data = (bundles / name).read_bytes()
    found = write_policy().examine("detector-2", model_digest, data, now_ms=NOW_MS)
    assert found is not None
    assert (found.identity, found.verified_ms) == (identity, NOW_MS)
    assert found.method == ("certificate" if name == "certificate.sig" else "key")


@pytest.mark.parametrize("name", ["secp256r1.sig", "secp256r1-folder.sig", "certificate.sig"])
def test_signature_of_another_model_is_refused(bundles: Path, write_policy: Any, name: str) -> None:
    data = (bundles / name).read_bytes()
    policy = write_policy()
    call = lambda: policy.examine("detector", "f" * 64, data, now_ms=NOW_MS)  # noqa: E731
    assert _code(call) == "other_model_signed"


@pytest.mark.parametrize("name", ["secp256r1.sig", "secp384r1.sig", "certificate.sig"])
def test_altered_statement_is_refused(
    bundles: Path, write_policy: Any, model_digest: str, name: str
) -> None:
    document = json.loads((bundles / name).read_text())
    payload = base64.b64decode(document["dsseEnvelope"]["payload"])
    document["dsseEnvelope"]["payload"] = base64.b64encode(payload + b" ").decode()
    data = json.dumps(document).encode()
    policy = write_policy()
    call = lambda: policy.examine("detector", model_digest, data, now_ms=NOW_MS)  # noqa: E731
    assert _code(call) == "signature_wrong"


def test_key_that_is_only_named_is_refused(
    sign: Any, write_policy: Any, bundles: Path, model_digest: str
) -> None:
    hint = json.loads((bundles / "secp256r1.sig").read_text())
    hint = hint["verificationMaterial"]["publicKey"]["hint"]
    policy = write_policy()
    data = sign(hint=hint)
    assert (
        _code(lambda: policy.examine("detector", model_digest, data, now_ms=NOW_MS))
        == "signature_wrong"
    )
    data = sign(hint="0" * 64)
    assert (
        _code(lambda: policy.examine("detector", model_digest, data, now_ms=NOW_MS))
        == "signer_not_allowed"
    )


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({}, ""),
        ({"predicate_type": "https://slsa.dev/provenance/v1"}, "bad_bundle"),
        ({"payload_type": "application/json"}, "bad_bundle"),
        ({"total": "0" * 64}, "bad_bundle"),
        ({"method": "shards"}, "bad_bundle"),
        ({"resources": []}, "bad_bundle"),
        ({"material": {}}, "bad_bundle"),
        ({"material": {"certificate": {"rawBytes": ""}}}, "keyless_signature"),
        ({"material": {"publicKey": {}, "tlogEntries": [{"logIndex": 1}]}}, "keyless_signature"),
        ({"chain": [b"no certificate"]}, "bad_bundle"),
        ({"chain": [b"x"] * 9}, "bad_bundle"),
    ],
)
def test_only_one_form_of_statement_is_believed(
    own_key: Any, sign: Any, model_digest: str, changed: dict[str, Any], code: str
) -> None:
    data = sign(hint=bundle.fingerprint(own_key.public_key()), **changed)
    examine = lambda: _own(own_key).examine("detector", model_digest, data, now_ms=NOW_MS)  # noqa: E731
    if code:
        assert _code(examine) == code
    else:
        assert examine() is not None


def test_digest_of_another_algorithm_does_not_pass_for_sha256(
    own_key: Any, sign: Any, model_digest: str
) -> None:
    listed = [{"name": "m", "algorithm": "blake3", "digest": model_digest}]
    data = sign(hint=bundle.fingerprint(own_key.public_key()), resources=listed)
    examine = lambda: _own(own_key).examine("detector", model_digest, data, now_ms=NOW_MS)  # noqa: E731
    assert _code(examine) == "bad_bundle"


def test_expired_certificate_is_refused(
    bundles: Path, write_policy: Any, model_digest: str
) -> None:
    data = (bundles / "certificate.sig").read_bytes()
    policy = write_policy()
    late_ms = NOW_MS + CENTURY_MS
    assert (
        _code(lambda: policy.examine("detector", model_digest, data, now_ms=late_ms))
        == "certificate_not_believed"
    )


def test_authority_does_not_vouch_for_everybody(
    bundles: Path, write_policy: Any, model_digest: str
) -> None:
    data = (bundles / "certificate.sig").read_bytes()
    for identities in (["bob@example.org"], ["*@example.com"], ["ann@example.org.*"]):
        policy = write_policy(certificates=[{"ca": "authority.pem", "identities": identities}])
        assert (
            _code(lambda: policy.examine("detector", model_digest, data, now_ms=NOW_MS))  # noqa: B023
            == "signer_not_allowed"
        )


@pytest.fixture
def issue(own_key: Any) -> Callable[..., x509.Certificate]:
    """Issues a certificate for the key of the test."""

    def make(issuer: str, key: Any, *, ca: bool = False, signs: bool = True) -> x509.Certificate:
        name = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])  # noqa: E731
        usage = x509.KeyUsage(signs, False, False, False, False, ca, ca, False, False)
        mail = x509.SubjectAlternativeName([x509.RFC822Name("ann@example.org")])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(name("research" if ca else "Ann"))
            .issuer_name(name(issuer))
            .public_key(own_key.public_key())
            .serial_number(1)
            .not_valid_before(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
            .not_valid_after(datetime.datetime(2096, 1, 1, tzinfo=datetime.UTC))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(mail, critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(own_key.public_key()), critical=False
            )
            .add_extension(authority, critical=False)
            .sign(key, hashes.SHA256())
        )

    return make


def test_certificate_of_another_authority_is_refused(
    bundles: Path, write_policy: Any, model_digest: str, sign: Any, issue: Any, own_key: Any
) -> None:
    """An authority of the same name, one's own certificate, and one that a signer's issued."""
    policy = write_policy()
    real = json.loads((bundles / "certificate.sig").read_text())["verificationMaterial"]
    chain = [
        base64.b64decode(item["rawBytes"]) for item in real["x509CertificateChain"]["certificates"]
    ]
    der = Encoding.DER
    impostor = issue("research", own_key)
    for forged in (
        [impostor.public_bytes(der)],
        [issue("research", own_key, ca=True).public_bytes(der)],
        [issue("Ann", own_key).public_bytes(der), *chain],
    ):
        data = sign(chain=forged)
        assert (
            _code(lambda: policy.examine("detector", model_digest, data, now_ms=NOW_MS))  # noqa: B023
            == "certificate_not_believed"
        )
    # Nor may anybody show Ann's certificate without her key.
    data = sign(chain=chain)
    assert (
        _code(lambda: policy.examine("detector", model_digest, data, now_ms=NOW_MS))
        == "signature_wrong"
    )


def test_certificate_that_is_not_for_signatures_is_refused(
    sign: Any, issue: Any, model_digest: str
) -> None:
    """The same authority, the same name: what differs is what the certificate is for."""
    root_key = ec.generate_private_key(ec.SECP256R1())
    root = _self_signed(root_key)
    rule = Rule("*", True, [], [Authority([root], ["ann@example.org"])])
    for signs, code in ((True, ""), (False, "certificate_not_believed")):
        leaf = issue("root", root_key, signs=signs).public_bytes(Encoding.DER)
        data = sign(chain=[leaf])
        examine = partial(Policy([rule]).examine, "m", model_digest, data, now_ms=NOW_MS)
        if code:
            assert _code(examine) == code
        else:
            found = examine()
            assert found is not None
            assert found.identity == "ann@example.org"


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2096, 1, 1, tzinfo=datetime.UTC))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


@given(data=strategies.binary(max_size=2_000))
def test_any_bytes_are_refused_in_the_house_s_words(data: bytes) -> None:
    with pytest.raises(Invalid):
        bundle.read(data)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@given(place=strategies.integers(0, 2_400), byte=strategies.integers(0, 255))
def test_no_single_changed_byte_gives_another_verdict_than_refused(place: int, byte: int) -> None:
    path = Path(__file__).parent / "bundles" / "certificate.sig"
    data = bytearray(path.read_bytes())
    data[place] = byte
    try:
        signed = bundle.read(bytes(data))
    except Invalid:
        return
    original = bundle.read(path.read_bytes())
    key = original.chain[0].public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    if (signed.payload, signed.signature) == (original.payload, original.signature):
        return
    with pytest.raises(Invalid):
        bundle.verify(signed, key, "0" * 64)


def test_bundle_without_end_is_refused() -> None:
    assert _code(lambda: bundle.read(b" " * (bundle.BUNDLE_BYTES + 1))) == "bad_bundle"


def test_certificate_with_broken_parts_is_refused(
    write_policy: Any, model_digest: str, sign: Any, issue: Any, own_key: Any
) -> None:
    """Each byte of it changed in turn: whatever breaks, it is said, with a code."""
    whole = issue("research", own_key).public_bytes(Encoding.DER)
    policy = write_policy()
    codes = set()
    for index in range(len(whole)):
        broken = bytearray(whole)
        broken[index] ^= 0x55
        data = sign(chain=[bytes(broken)])
        codes.add(_code(partial(policy.examine, "detector", model_digest, data, now_ms=NOW_MS)))
    assert codes == {"bad_bundle", "certificate_not_believed"}

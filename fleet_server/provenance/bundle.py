"""A model's signature in the form of OpenSSF Model Signing: read, and verified.

Decides whether a bundle (``model.sig``) was signed by a given key or under a given authority, and
whether it is about a given file. Who may sign which model is decided in
:mod:`fleet_server.provenance.policy`. Signatures without a key of one's own ("keyless") are told
apart and refused: to verify one takes transparency logs, and so the network.
Form: sigstore's bundle v0.3 with an in-toto statement in a DSSE envelope, as the project
model-signing writes it (predicate https://model_signing/signature/v1.0).
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import ExtensionPolicy, PolicyBuilder, Store, VerificationError
from msgspec import Meta

from fleet_contract import codec
from fleet_contract.errors import Refused
from fleet_contract.names import Digest
from fleet_contract.trust.envelope import pre_authentication_encoding
from fleet_server.errors import Invalid
from fleet_server.trust.authority.certificates import UNREADABLE

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle."

BUNDLE_BYTES = 256 * 1024
"""A bundle. A file takes about 150 bytes in it, twice that in base64; a certificate below 2 KiB."""
CERTIFICATES = 8
RESOURCES = 1_000
IDENTITIES = 16
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


class _Signature(msgspec.Struct, frozen=True):
    sig: str


class _Envelope(msgspec.Struct, frozen=True, rename="camel"):
    payload: str
    payload_type: str
    signatures: Annotated[list[_Signature], Meta(min_length=1, max_length=1)]


class _Hint(msgspec.Struct, frozen=True):
    hint: str | None = None


class _Certificate(msgspec.Struct, frozen=True, rename="camel"):
    raw_bytes: str


class _Chain(msgspec.Struct, frozen=True):
    certificates: Annotated[list[_Certificate], Meta(min_length=1, max_length=CERTIFICATES)]


class _Material(msgspec.Struct, frozen=True, rename="camel"):
    public_key: _Hint | None = None
    x509_certificate_chain: _Chain | None = None
    certificate: _Certificate | None = None
    tlog_entries: list[Any] = []


class _Bundle(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


class _Resource(msgspec.Struct, frozen=True):
    name: str
    algorithm: str
    digest: Digest


class _Serialization(msgspec.Struct, frozen=True):
    method: str


class _Predicate(msgspec.Struct, frozen=True):
    serialization: _Serialization
    resources: Annotated[list[_Resource], Meta(min_length=1, max_length=RESOURCES)]


class _DigestSet(msgspec.Struct, frozen=True):
    sha256: Digest


class _Subject(msgspec.Struct, frozen=True):
    name: str
    digest: _DigestSet


class _Statement(msgspec.Struct, frozen=True, rename="camel"):
    type: str = msgspec.field(name="_type")
    predicate_type: str
    subject: Annotated[list[_Subject], Meta(min_length=1, max_length=1)]
    predicate: _Predicate


@dataclass(frozen=True, slots=True)
class Signed:
    """A bundle as it was read; nothing in it is believed yet.

    ``hint`` is the fingerprint of the key that it says to be signed by, ``chain`` its certificates,
    the signer's first; one of the two is empty.
    """

    digest: str
    hint: str
    chain: Sequence[x509.Certificate]
    payload: bytes
    signature: bytes


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of a key in PEM: what bundles name a key by."""
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def read(data: bytes) -> Signed:
    """Read a bundle.

    The checks: 1. size and form; 2. the method is one that can be verified here.

    Raises:
        Invalid: ``bad_bundle`` or ``keyless_signature``.
    """
    # 1. Size, form.
    try:
        bundle = codec.decode_json(data, _Bundle, limit_bytes=BUNDLE_BYTES)
    except Refused as refused:
        raise _refuse("bad_bundle", f"it cannot be read: {refused.detail[:200]}") from refused
    material, envelope = bundle.verification_material, bundle.dsse_envelope
    if not bundle.media_type.startswith(MEDIA_TYPE) or envelope.payload_type != PAYLOAD_TYPE:
        raise _refuse("bad_bundle", "it is no sigstore bundle of an in-toto statement")
    # 2. Method.
    if material.certificate is not None or material.tlog_entries:
        raise Invalid(
            "keyless_signature",
            "The signature is a keyless one of sigstore: to verify it takes transparency logs in "
            "the network, which this server does not ask.",
            "Sign with a key or a certificate: model_signing sign key, or sign certificate.",
        )
    listed = material.x509_certificate_chain
    hint = (material.public_key.hint or "") if material.public_key is not None else ""
    if (listed is None) == (material.public_key is None):
        raise _refuse("bad_bundle", "it names neither a key nor a certificate, or both")
    try:
        chain = [
            x509.load_der_x509_certificate(_decode(item.raw_bytes))
            for item in (listed.certificates if listed is not None else [])
        ]
    except UNREADABLE as error:
        raise _refuse("bad_bundle", "a certificate in it cannot be read") from error
    digest = hashlib.sha256(data).hexdigest()
    payload = _decode(envelope.payload)
    return Signed(digest, hint, chain, payload, _decode(envelope.signatures[0].sig))


def verify_chain(
    signed: Signed, authorities: Sequence[x509.Certificate], *, now_ms: int
) -> ec.EllipticCurvePublicKey:
    """Return the signer's key if one of the authorities vouches for it now.

    3. certificate: a path to an authority, all of it valid at this time, and the first one is for
    signatures. A certificate that has expired is not believed, since nothing in such a bundle
    proves when it was signed.

    Raises:
        Invalid: ``certificate_not_believed``.
    """
    leaf = signed.chain[0]
    try:
        verifier = (
            PolicyBuilder()
            .store(Store(list(authorities)))
            .time(datetime.fromtimestamp(now_ms // 1_000, UTC))
            .extension_policies(
                ca_policy=ExtensionPolicy.webpki_defaults_ca(),
                ee_policy=ExtensionPolicy.permit_all(),
            )
            .build_client_verifier()
        )
        verifier.verify(leaf, list(signed.chain[1:]))
        purpose = _may_sign(leaf)
        key = leaf.public_key()
    except (VerificationError, *UNREADABLE) as error:
        raise _refuse("certificate_not_believed", f"{str(error)[:200]}") from error
    if not purpose or not isinstance(key, ec.EllipticCurvePublicKey):
        raise _refuse("certificate_not_believed", "its certificate is not for signatures of models")
    return key


def identities(certificate: x509.Certificate) -> list[str]:
    """Return the names of a certificate: its alternative names, or else its common name.

    Raises:
        Invalid: ``bad_bundle``: its names cannot be read. A certificate's parts are parsed when
            they are asked for, so one that loads may still hold anything.
    """
    try:
        return _names(certificate)[:IDENTITIES]
    except UNREADABLE as error:
        raise _refuse("bad_bundle", "the names in its certificate cannot be read") from error


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return [str(item.value) for item in common]
    return [
        *names.get_values_for_type(x509.RFC822Name),
        *names.get_values_for_type(x509.UniformResourceIdentifier),
        *names.get_values_for_type(x509.DNSName),
    ]


def verify(signed: Signed, key: ec.EllipticCurvePublicKey, model_digest: str) -> None:
    """Check that this key signed the bundle, and that the bundle is about this file.

    The checks go on: 4. signature; 5. statement: its kind, and its sum over the files that it
    lists; 6. file: one of them is the given one.

    Raises:
        Invalid: ``signature_wrong``, ``bad_bundle`` or ``other_model_signed``.
    """
    # 4. Signature.
    algorithm = _HASHES.get(key.curve.name)
    if algorithm is None:
        raise _refuse("signature_wrong", f"keys on {key.curve.name} are not believed")
    try:
        signed_bytes = pre_authentication_encoding(PAYLOAD_TYPE, signed.payload)
        key.verify(signed.signature, signed_bytes, ec.ECDSA(algorithm))
    except InvalidSignature as error:
        raise _refuse("signature_wrong", "it is not by the key that it names") from error
    # 5. Statement.
    try:
        stated = codec.decode_json(signed.payload, _Statement, limit_bytes=BUNDLE_BYTES)
    except Refused as refused:
        raise _refuse("bad_bundle", f"its statement: {refused.detail[:200]}") from refused
    files = stated.predicate.resources
    total = hashlib.sha256(b"".join(bytes.fromhex(item.digest) for item in files)).hexdigest()
    if (stated.type, stated.predicate_type) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise _refuse("bad_bundle", "its statement is of another kind or version")
    if total != stated.subject[0].digest.sha256:
        raise _refuse("bad_bundle", "its sum is not that of the files that it lists")
    hashed = {item.digest for item in files if item.algorithm == "sha256"}
    if stated.predicate.serialization.method != "files" or not hashed:
        raise _refuse("bad_bundle", "it does not list the SHA-256 of whole files")
    # 6. File.
    if model_digest not in hashed:
        raise _refuse("other_model_signed", "it is about other files than the model of this push")


def _may_sign(certificate: x509.Certificate) -> bool:
    """Say whether a certificate is a signer's: what model-signing asks, and no authority's own."""
    extensions = certificate.extensions
    for extension in extensions:
        if isinstance(extension.value, x509.BasicConstraints) and extension.value.ca:
            return False
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.KeyUsage) and value.digital_signature:
            return True
        if isinstance(value, x509.ExtendedKeyUsage) and ExtendedKeyUsageOID.CODE_SIGNING in value:
            return True
    return False


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise _refuse("bad_bundle", "a part of it is not base64") from error


def _refuse(code: str, why: str) -> Invalid:
    return Invalid(
        code,
        f"The model's signature is refused: {why}.",
        "Sign the very file that is pushed: model_signing sign key, or sign certificate.",
    )

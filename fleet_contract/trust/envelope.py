"""DSSE envelopes with Ed25519 signatures.

Decides what is signed (the pre-authentication encoding of payload type and payload) and whether
a known key signed it. Which keys are known, and what a payload means, is decided by the callers.
Format: https://github.com/secure-systems-lab/dsse/blob/master/protocol.md (version 1.0).
"""

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fleet_contract import codec
from fleet_contract.errors import Reason, Refused

SIGNATURES = 8
"""Signatures that one envelope may carry; each costs a verification."""


class Signature(msgspec.Struct, frozen=True):
    """One signature of an envelope; ``sig`` is base64."""

    keyid: str
    sig: str


class Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """The JSON form of a DSSE envelope; ``payload`` is base64."""

    payload: str
    payload_type: str
    signatures: list[Signature]


def key_id(public_key: bytes) -> str:
    """Return the identifier of a raw 32-byte Ed25519 public key: its SHA-256 in hexadecimal."""
    return hashlib.sha256(public_key).hexdigest()


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed, so that no payload can pass for one of another type."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(
    payload_type: str, payload: bytes, signers: Mapping[str, Callable[[bytes], bytes]]
) -> bytes:
    """Return the envelope in JSON, signed by every signer.

    Args:
        payload_type: media type of the payload.
        payload: the exact bytes that are signed.
        signers: key id → function that signs bytes with Ed25519 and returns 64 bytes.
    """
    encoded = pre_authentication_encoding(payload_type, payload)
    return codec.encode_json(
        Envelope(
            payload=base64.b64encode(payload).decode(),
            payload_type=payload_type,
            signatures=[
                Signature(keyid=name, sig=base64.b64encode(sign(encoded)).decode())
                for name, sign in sorted(signers.items())
            ],
        )
    )


def unseal(data: bytes, payload_type: str, keys: Mapping[str, bytes], *, limit_bytes: int) -> bytes:
    """Return the payload of an envelope that one of the given keys signed.

    The checks, in this order:

    1. size: at most ``limit_bytes``, and the form of an envelope;
    2. key id: a signature by a known key is there, and the payload type is the expected one;
    3. signature: one of those signatures is right.

    Args:
        data: the envelope as received.
        payload_type: the only type accepted here.
        keys: key id → raw 32-byte public key.
        limit_bytes: the size cap.

    Raises:
        Refused: ``too_large``, ``malformed``, ``unknown_key`` or ``bad_signature``.
    """
    # 1. Size, then form.
    envelope = codec.decode_json(data, Envelope, limit_bytes=limit_bytes)
    if len(envelope.signatures) > SIGNATURES:
        raise Refused(Reason.MALFORMED, f"more than {SIGNATURES} signatures")
    if envelope.payload_type != payload_type:
        raise Refused(
            Reason.MALFORMED, f"expected {payload_type}, got {envelope.payload_type[:80]}"
        )
    payload = _decode_base64(envelope.payload)
    # 2. Key id.
    known = [signature for signature in envelope.signatures if signature.keyid in keys]
    if not known:
        names = ", ".join(signature.keyid[:12] for signature in envelope.signatures) or "nobody"
        raise Refused(Reason.UNKNOWN_KEY, f"signed by {names}, none of whom may sign this")
    # 3. Signature.
    encoded = pre_authentication_encoding(payload_type, payload)
    for signature in known:
        if _verifies(keys[signature.keyid], _decode_base64(signature.sig), encoded):
            return payload
    raise Refused(Reason.BAD_SIGNATURE, f"the signature of {known[0].keyid[:12]} is wrong")


def _verifies(public_key: bytes, signature: bytes, data: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _decode_base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(Reason.MALFORMED, "not base64") from error
    # The last character may carry bits that no byte takes: one document has one form only.
    if base64.b64encode(data).decode() != text:
        raise Refused(Reason.MALFORMED, "not the base64 of what it holds")
    return data

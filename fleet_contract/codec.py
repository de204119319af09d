"""Bytes to typed values and back: JSON for what is signed, MessagePack for telemetry.

Decides how a document is read: first its size, then its form. Unknown fields are ignored, so that
a peer of the next wire version can be understood. Meaning is checked by the callers.
"""

from typing import TypeVar

import msgspec

from fleet_contract.errors import Reason, Refused

T = TypeVar("T")


def encode_json(value: object) -> bytes:
    """Return compact JSON with sorted keys: the same value always gives the same bytes."""
    return msgspec.json.encode(value, order="deterministic")


def decode_json(data: bytes, kind: type[T], *, limit_bytes: int) -> T:
    """Read a JSON document of type ``kind``.

    Raises:
        Refused: ``too_large`` above ``limit_bytes``, ``malformed`` if it is not such a document.
    """
    _bound(data, kind, limit_bytes)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(Reason.MALFORMED, f"not a {kind.__name__}: {error}") from error


def encode_msgpack(value: object) -> bytes:
    """Return MessagePack with sorted maps: the same value always gives the same bytes."""
    return msgspec.msgpack.encode(value, order="deterministic")


def decode_msgpack(data: bytes, kind: type[T], *, limit_bytes: int) -> T:
    """Read a MessagePack document of type ``kind``.

    Raises:
        Refused: ``too_large`` above ``limit_bytes``, ``malformed`` if it is not such a document.
    """
    _bound(data, kind, limit_bytes)
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(Reason.MALFORMED, f"not a {kind.__name__}: {error}") from error


def _bound(data: bytes, kind: type[object], limit_bytes: int) -> None:
    if len(data) > limit_bytes:
        raise Refused(
            Reason.TOO_LARGE, f"a {kind.__name__} has at most {limit_bytes} bytes, got {len(data)}"
        )

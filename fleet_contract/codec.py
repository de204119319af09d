"""Bytes to typed values and back: JSON for what is signed, MessagePack for telemetry.

Decides how a document is read: first its size, then its form. Unknown fields are ignored, so that
a peer of the next wire version can be understood. Meaning is checked by the callers.
"""

import threading
from typing import TypeVar

import msgspec

from fleet_contract.errors import Reason, Refused

T = TypeVar("T")

_prepared: set[object] = set()
_preparing = threading.Lock()


def prepared(kind: type[T]) -> type[T]:
    """Return a type that any number of threads may read at once.

    msgspec describes a type to itself when it is read for the first time. A thread that reads it,
    or a type that it is a part of, before that is done finds fields without types, and the process
    ends by a segmentation fault (msgspec 0.22). So one thread at a time does that, here. Whoever
    calls ``msgspec.convert`` or ``decode`` directly passes the type through this function.
    """
    if kind not in _prepared:
        with _preparing:
            msgspec.json.Decoder(kind)
            _prepared.add(kind)
    return kind


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
        return msgspec.json.decode(data, type=prepared(kind))
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
        return msgspec.msgpack.decode(data, type=prepared(kind))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(Reason.MALFORMED, f"not a {kind.__name__}: {error}") from error


def _bound(data: bytes, kind: type[object], limit_bytes: int) -> None:
    if len(data) > limit_bytes:
        raise Refused(
            Reason.TOO_LARGE, f"a {kind.__name__} has at most {limit_bytes} bytes, got {len(data)}"
        )

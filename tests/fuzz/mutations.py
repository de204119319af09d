"""Structured mutations: what is nearly right goes deeper into a parser than noise does.

A mutation is drawn from a seeded generator, so that a seed and a number give the same bytes again.
JSON and MessagePack are taken apart and one or a few of their values exchanged; whatever is none of
both is changed byte by byte. Some inputs of every kind are left broken on purpose.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

LARGEST_BYTES = 64 * 1024
WILD: list[Any] = [
    *(None, True, False, 0, 1, -1, 0.0, -0.5, 1e308, 2**31, 2**32, 2**53, 2**63 - 1, 2**63),
    *(2**64 - 1, -(2**63), "", "a", "disabled", "../..", "a" * 300, "\x00", "é", "f" * 64),
    "0" * 16,
    *("ffffffffffffffff", "2147483648", [], {}, [[]], {"": {}}, [None] * 70, [0] * 4097),
]
BYTES = [b"", b"\x00", b"\xff", b"\x7f", b"\x80", b"{", b"}", b"[" * 50, b'"', b"\\u0000", b"1e999"]


def mutate(seed: bytes, number: int) -> bytes:
    """Return one mutation of an input; the same number always makes the same one."""
    draw = random.Random(number)
    kind = draw.random()
    changed = None
    if kind < 0.65:
        changed = _restructured(seed, draw)
    if changed is None or draw.random() < 0.1:
        changed = _scrambled(changed or seed, draw)
    return changed[:LARGEST_BYTES]


def _restructured(seed: bytes, draw: random.Random) -> bytes | None:
    for codec in (msgspec.json, msgspec.msgpack):
        try:
            document = codec.decode(seed)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        if not isinstance(document, dict | list):
            continue
        for _ in range(draw.choice([1, 1, 1, 2, 5])):
            document = _exchanged(document, draw)
        try:
            return codec.encode(document)
        except (msgspec.MsgspecError, OverflowError, UnicodeEncodeError, RecursionError):
            return None
    return None


def _exchanged(value: Any, draw: random.Random) -> Any:
    """Return the value with something in it exchanged, left out, doubled or added."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        fate = draw.random()
        if fate < 0.1:
            return {name: item for name, item in value.items() if name != key}
        if fate < 0.15:
            return {**value, draw.choice(["x", "fleet", "a" * 200]): draw.choice(WILD)}
        return {**value, key: _exchanged(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        at = draw.randrange(len(value))
        fate = draw.random()
        if fate < 0.1:
            return value[:at] + value[at + 1 :]
        if fate < 0.2:
            return value[:at] + value[at : at + 1] * draw.choice([2, 3, 65]) + value[at + 1 :]
        return [*value[:at], _exchanged(value[at], draw), *value[at + 1 :]]
    if isinstance(value, bool | None):
        return draw.choice(WILD)
    if isinstance(value, int) and draw.random() < 0.6:
        return draw.choice([value + 1, value - 1, -value, value * 2, value << 20, 0])
    if isinstance(value, str) and value and draw.random() < 0.5:
        at = draw.randrange(len(value))
        new = draw.choice(["", "0", "f", "A", "/", ".", "\n", "é", value])
        return value[:at] + new + value[at + 1 :]
    return draw.choice(WILD)


def _scrambled(data: bytes, draw: random.Random) -> bytes:
    """Return the bytes changed in one to four places."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4])):
        at = draw.randrange(len(changed) + 1)
        end = min(len(changed), at + draw.choice([1, 2, 4, 16, 64]))
        match draw.randrange(5):
            case 0 if at < len(changed):
                changed[at] ^= 1 << draw.randrange(8)
            case 1:
                changed[at:at] = draw.choice(BYTES)
            case 2:
                del changed[at:end]
            case 3:
                changed[at:at] = changed[at:end] * draw.choice([1, 2, 30])
            case _:
                changed[at:end] = draw.randbytes(end - at)
    return bytes(changed)

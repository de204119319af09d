"""The form of a patch: header, operations, and how differences are laid out before compression.

Decides what the bytes mean, for the writer and the decoder alike, and which bounds hold. A patch
knows nothing of file formats: it says which ranges of the old file are copied, added to or left
out, in how wide integers. Which ranges those should be is the server's business; that the result
is right is said by its SHA-256, so a patch itself needs no signature.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fleet_contract import limits
from fleet_contract.errors import Reason, Refused

MAGIC = b"EFDELTA1"
_HEADER = struct.Struct("<8s32s32sQQ")
HEADER_BYTES = _HEADER.size

WIDTHS = (1, 2, 4, 8)
"""Bytes of the integers that a tensor's elements are read as."""

GROUP_BYTES = 128 * 1024
"""Differences and literals of one group. A decoder holds some five times as much."""

GROUP_OPERATIONS = 4096
"""Operations of one group."""

WINDOW_LOG = 18
"""The decompressor's window has 2^18 bytes. Weights repeat nothing: a larger one saves nothing."""

SPARSE = 4
"""A plane may be written as gaps if at most one byte in so many is not 0. General compressors need
two or three bytes for each such byte, gaps and values about one.
"""

LARGEST_SHARE = 0.7
"""A patch is worth having up to this share of the new file; above it the whole file is simpler."""

NUMBER_BYTES = 10
"""The longest number: 64 bits, 7 in a byte."""

Integers = NDArray[np.unsignedinteger]


class Kind(IntEnum):
    """What an operation does with the old file's range."""

    COPY = 0
    LITERAL = 1
    """There is none: the new bytes are in the patch."""
    SUBTRACT = 2
    """new = old + difference, wrapping around; the sign is folded into the lowest bit."""
    XOR = 3


@dataclass(frozen=True, slots=True)
class Operation:
    """The next ``size_bytes`` of the new file, made from the old file's at ``base``."""

    kind: Kind
    width_bytes: int
    size_bytes: int
    base: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """Which file a patch is for, and what it makes of it. Digests are SHA-256, hexadecimal."""

    old_digest: str
    new_digest: str
    old_bytes: int
    new_bytes: int

    def write(self) -> bytes:
        """Return the header's bytes."""
        return _HEADER.pack(
            MAGIC,
            bytes.fromhex(self.old_digest),
            bytes.fromhex(self.new_digest),
            self.old_bytes,
            self.new_bytes,
        )


def patch_path(old_digest: str, new_digest: str) -> str:
    """Return where the patch between two artifacts lies below the server's artifact root."""
    return f"deltas/{old_digest}/{new_digest}"


def read_header(data: bytes) -> Header:
    """Read the first ``HEADER_BYTES`` of a patch.

    Raises:
        Refused: ``malformed`` if it is none, ``too_large`` if a file is longer than artifacts are.
    """
    if len(data) != HEADER_BYTES or not data.startswith(MAGIC):
        raise Refused(Reason.MALFORMED, "this is no patch of a version that is known here")
    _, old, new, old_bytes, new_bytes = _HEADER.unpack(data)
    if max(old_bytes, new_bytes) > limits.ARTIFACT_BYTES:
        raise Refused(Reason.TOO_LARGE, f"a patch of {old_bytes} to {new_bytes} bytes")
    return Header(old.hex(), new.hex(), old_bytes, new_bytes)


def most_operations(new_bytes: int) -> int:
    """Return how many operations a patch may have: each costs time, however short it is."""
    return GROUP_OPERATIONS + new_bytes // 64


def layer(operation: Operation) -> tuple[bool, int]:
    """Return with which others of its group an operation's bytes are laid out: differences are
    unlike literals, and each width has planes of its own.
    """
    return operation.kind is Kind.LITERAL, operation.width_bytes


LAYERS = tuple((literal, width) for literal in (False, True) for width in WIDTHS)
"""All of them, in the order in which a group has them."""


def integers(data: bytes | memoryview, width_bytes: int) -> Integers:
    """Return bytes as little-endian unsigned integers, without copying."""
    return np.frombuffer(data, dtype=f"<u{width_bytes}")


def difference(kind: Kind, new: Integers, old: Integers) -> Integers:
    """Return what a patch holds for ``new``; ``old`` is not looked at for a literal."""
    if kind is Kind.LITERAL:
        return new
    if kind is Kind.XOR:
        return np.bitwise_xor(new, old)
    apart = np.subtract(new, old)
    zero, one, top = (apart.dtype.type(n) for n in (0, 1, 8 * apart.itemsize - 1))
    # 0, -1, 1, -2 … become 0, 1, 2, 3 …: small differences have zeros on top, whatever sign.
    signs = np.subtract(zero, np.right_shift(apart, top))
    folded: Integers = np.bitwise_xor(np.left_shift(apart, one), signs)
    return folded


def undo(kind: Kind, held: Integers, old: Integers) -> Integers:
    """Return the new integers from what a patch holds, the inverse of :func:`difference`."""
    if kind is Kind.XOR:
        return np.bitwise_xor(held, old)
    zero, one = held.dtype.type(0), held.dtype.type(1)
    made = np.bitwise_and(held, one)
    np.subtract(zero, made, out=made)
    np.bitwise_xor(made, np.right_shift(held, one), out=made)
    return np.add(made, old, out=made)


def planes(values: Integers) -> bytes:
    """Return the lowest bytes of all, then the second lowest of all, and so on."""
    table = values.view(np.uint8).reshape(-1, values.itemsize)
    return table.T.tobytes()


def from_planes(data: bytes, width_bytes: int) -> Integers:
    """Return the integers of these planes."""
    if width_bytes == 1:
        return integers(data, 1)
    table = np.frombuffer(data, np.uint8).reshape(width_bytes, -1)
    return np.ascontiguousarray(table.T).reshape(-1).view(f"<u{width_bytes}")


def to_gaps(plane: bytes) -> tuple[bytes, bytes] | None:
    """Return the bytes of a plane that are not 0 and how many zeros are before each, at most 255.

    A longer gap has zeros among the bytes. None: they are more than one in ``SPARSE``.
    """
    values = np.frombuffer(plane, np.uint8)
    places = np.flatnonzero(values)
    before = np.diff(places, prepend=-1) - 1
    ends = np.cumsum(before // 256 + 1)
    count = int(ends[-1]) if len(ends) else 0
    if count > len(plane) // SPARSE:
        return None
    gaps, kept = np.full(count, 255, np.uint8), np.zeros(count, np.uint8)
    gaps[ends - 1], kept[ends - 1] = before % 256, values[places]
    return gaps.tobytes(), kept.tobytes()


def from_gaps(gaps: bytes, kept: bytes, size: int) -> bytes:
    """Return the plane of so many bytes, the inverse of :func:`to_gaps`.

    Raises:
        Refused: ``malformed`` if a byte lies behind the plane's end.
    """
    places = np.cumsum(np.frombuffer(gaps, np.uint8) + np.uint32(1), dtype=np.uint32)
    if len(places) and places[-1] > size:
        raise Refused(Reason.MALFORMED, "a gap leads out of its plane")
    plane = np.zeros(size, np.uint8)
    plane[places - np.uint32(1)] = np.frombuffer(kept, np.uint8)
    return plane.tobytes()


def write_number(value: int) -> bytes:
    """Return a number from 0 on in groups of 7 bits, the lowest first."""
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def fold(value: int) -> int:
    """Return a signed number as one from 0 on: 0, -1, 1, -2 … become 0, 1, 2, 3 …"""
    return value << 1 if value >= 0 else (-value << 1) - 1


def unfold(value: int) -> int:
    """Return the inverse of :func:`fold`."""
    return -((value + 1) >> 1) if value & 1 else value >> 1

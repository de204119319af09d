"""Decides how patches are written and applied in these tests: in memory, from operations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import pytest

from fleet_contract.deltas.decoder import Decoder
from fleet_contract.deltas.form import Header, Operation
from fleet_contract.deltas.writer import PatchWriter


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(old: bytes, new: bytes, operations: Sequence[Operation], level: int = 3) -> bytes:
    written = bytearray()
    header = Header(digest(old), digest(new), len(old), len(new))
    writer = PatchWriter(header, old, new, written.extend, level=level)
    for operation in operations:
        writer.add(operation)
    writer.finish()
    return bytes(written)


def _apply(old: bytes, patch: bytes, most_at_once: int = 1 << 30) -> bytes:
    """What the patch makes; the patch arrives in pieces of at most so many bytes."""
    position = 0

    def read_patch(size: int) -> bytes:
        nonlocal position
        piece = patch[position : position + min(size, most_at_once)]
        position += len(piece)
        return piece

    decoder = Decoder(read_patch)
    made = bytearray()
    for piece in decoder.pieces(lambda start, size: old[start : start + size]):
        made += piece
        assert len(made) <= decoder.header.new_bytes
    return bytes(made)


@pytest.fixture
def write() -> Callable[..., bytes]:
    return _write


@pytest.fixture
def apply() -> Callable[..., bytes]:
    return _apply

"""Makes the smallest patch it can between two model files.

Decides per range whether old bytes are copied, subtracted, combined by exclusive or, or left out,
by trying each. Files come as buffers. Limits on time and memory are the caller's, who runs this in
a child.
"""

from collections.abc import Callable, Iterator

from fleet_contract.deltas.form import (
    GROUP_BYTES,
    Header,
    Kind,
    Operation,
    difference,
    integers,
    planes,
)
from fleet_contract.deltas.writer import PatchWriter
from fleet_contract.deltas.zstandard import zstd
from fleet_server.deltas.alignment import Range, align

LEVEL = 9
"""Above it zstd takes ten times as long to save a hundredth of what differs."""
_TRIAL_LEVEL = 1
_SMALL_BYTES = 512
"""Shorter ranges are subtracted without a trial: what could be saved is less than an operation."""


def encode(
    old: memoryview,
    new: memoryview,
    write: Callable[[bytes], object],
    *,
    old_digest: str,
    new_digest: str,
    level: int = LEVEL,
) -> None:
    """Write a patch that makes ``new`` of ``old``.

    Args:
        old: the file that devices have.
        new: the one that they shall have.
        write: takes the patch's next bytes.
        old_digest: SHA-256 of ``old``, hexadecimal.
        new_digest: SHA-256 of ``new``.
        level: of compression.

    Raises:
        Refused: ``too_large`` if the files differ in too many places.
    """
    header = Header(old_digest, new_digest, len(old), len(new))
    writer = PatchWriter(header, old, new, write, level=level)
    for operation in _merged(_operations(old, new)):
        writer.add(operation)
    writer.finish()


def _operations(old: memoryview, new: memoryview) -> Iterator[Operation]:
    for aligned in align(old, new):
        for piece in _pieces(aligned):
            yield _choose(old, new, piece)


def _pieces(aligned: Range) -> Iterator[Range]:
    for done in range(0, aligned.size_bytes, GROUP_BYTES):
        yield Range(
            aligned.start + done,
            min(GROUP_BYTES, aligned.size_bytes - done),
            aligned.width_bytes,
            None if aligned.base is None else aligned.base + done,
        )


def _choose(old: memoryview, new: memoryview, piece: Range) -> Operation:
    width, size = piece.width_bytes, piece.size_bytes
    if piece.base is None:
        return Operation(Kind.LITERAL, width, size)
    fresh, base = new[piece.start : piece.start + size], old[piece.base : piece.base + size]
    if fresh == base:
        return Operation(Kind.COPY, 1, size, piece.base)
    if size <= _SMALL_BYTES:
        return Operation(Kind.SUBTRACT, width, size, piece.base)
    values, was = integers(fresh, width), integers(base, width)
    sizes = {
        kind: len(zstd.compress(planes(difference(kind, values, was)), level=_TRIAL_LEVEL))
        for kind in (Kind.SUBTRACT, Kind.XOR, Kind.LITERAL)
    }
    best = min(sizes, key=sizes.__getitem__)
    return Operation(best, width, size, 0 if best is Kind.LITERAL else piece.base)


def _merged(operations: Iterator[Operation]) -> Iterator[Operation]:
    """Join copies, and short ranges of the same kind, that follow one another in both files."""
    last: Operation | None = None
    for operation in operations:
        if last is not None and _joins(last, operation):
            last = Operation(
                last.kind, last.width_bytes, last.size_bytes + operation.size_bytes, last.base
            )
            continue
        if last is not None:
            yield last
        last = operation
    if last is not None:
        yield last


def _joins(last: Operation, following: Operation) -> bool:
    if (last.kind, last.width_bytes) != (following.kind, following.width_bytes):
        return False
    if last.kind is not Kind.LITERAL and last.base + last.size_bytes != following.base:
        return False
    return last.kind is Kind.COPY or last.size_bytes + following.size_bytes <= GROUP_BYTES

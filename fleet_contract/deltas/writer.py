"""Writes a patch from operations that somebody has chosen: grouped, laid out and compressed.

Decides where a group ends and how the bytes within it lie. Which operations make the smallest patch
is the server's business.
"""

from collections.abc import Callable

import numpy as np

from fleet_contract.deltas.form import (
    GROUP_BYTES,
    GROUP_OPERATIONS,
    LAYERS,
    WIDTHS,
    WINDOW_LOG,
    Header,
    Integers,
    Kind,
    Operation,
    difference,
    fold,
    integers,
    layer,
    most_operations,
    planes,
    to_gaps,
    write_number,
)
from fleet_contract.deltas.zstandard import zstd
from fleet_contract.errors import Reason, Refused

Buffer = bytes | memoryview
_TRIAL_LEVEL = 3
_BLOCK_BYTES = 4096


class PatchWriter:
    """Writes one patch; :meth:`add` the operations in the new file's order, then :meth:`finish`."""

    def __init__(
        self,
        header: Header,
        old: Buffer,
        new: Buffer,
        write: Callable[[bytes], object],
        *,
        level: int,
    ) -> None:
        """Write the header.

        Args:
            header: of the patch; its sizes are those of ``old`` and ``new``.
            old: the old file.
            new: the new one.
            write: takes the patch's next bytes.
            level: of compression, 1 to 19.
        """
        self._old, self._new = memoryview(old), memoryview(new)
        self._write = write
        self._frame = zstd.ZstdCompressor(
            options={
                zstd.CompressionParameter.compression_level: level,
                zstd.CompressionParameter.window_log: WINDOW_LOG,
            }
        )
        self._at_new = self._at_old = 0
        self._left = most_operations(header.new_bytes)
        self._operations: list[Operation] = []
        self._held: dict[tuple[bool, int], list[Integers]] = {kind: [] for kind in LAYERS}
        self._held_bytes = 0
        write(header.write())

    def add(self, operation: Operation) -> None:
        """Append an operation; one that has a payload is at most ``GROUP_BYTES`` long.

        Raises:
            Refused: ``too_large`` if the patch has more operations than a device takes.
        """
        payload = 0 if operation.kind is Kind.COPY else operation.size_bytes
        full = len(self._operations) >= GROUP_OPERATIONS
        if full or self._held_bytes + payload > GROUP_BYTES:
            self._flush()
        self._left -= 1
        if self._left < 0:
            raise Refused(Reason.TOO_LARGE, "the files differ in too many places for a patch")
        self._operations.append(operation)
        if payload:
            width = operation.width_bytes
            new = integers(self._new[self._at_new : self._at_new + payload], width)
            # A literal has no old bytes; what is passed for them is not looked at.
            base = new
            if operation.kind is not Kind.LITERAL:
                base = integers(self._old[operation.base : operation.base + payload], width)
            self._held[layer(operation)].append(difference(operation.kind, new, base))
            self._held_bytes += payload
        self._at_new += operation.size_bytes

    def finish(self) -> None:
        """Write what is left."""
        self._flush()
        self._write(self._frame.flush())

    def _flush(self) -> None:
        if not self._operations:
            return
        table = bytearray(write_number(len(self._operations)))
        for operation in self._operations:
            table.append(operation.kind << 4 | WIDTHS.index(operation.width_bytes))
            table += write_number(operation.size_bytes)
            if operation.kind is not Kind.LITERAL:
                table += write_number(fold(operation.base - self._at_old))
                self._at_old = operation.base + operation.size_bytes
        self._write(self._frame.compress(bytes(table)))
        for (_, width), parts in self._held.items():
            if not parts:
                continue
            laid_out = planes(np.concatenate(parts))
            share = len(laid_out) // width
            for start in range(0, len(laid_out), share):
                self._write_plane(laid_out[start : start + share])
            parts.clear()
        self._operations.clear()
        self._held_bytes = 0

    def _write_plane(self, plane: bytes) -> None:
        gaps = to_gaps(plane)
        if gaps is None or sum(map(_trial, gaps)) >= _trial(plane):
            self._write(self._frame.compress(write_number(0)))
            self._write_block(plane)
            return
        self._write(self._frame.compress(write_number(len(gaps[0]) + 1)))
        for part in gaps:
            self._write_block(part)

    def _write_block(self, data: bytes) -> None:
        """Write what has statistics like nothing else as a block, if it is worth a block's head."""
        end = zstd.ZstdCompressor.FLUSH_BLOCK
        mode = end if len(data) >= _BLOCK_BYTES else zstd.ZstdCompressor.CONTINUE
        self._write(self._frame.compress(data, mode))


def _trial(data: bytes) -> int:
    return len(zstd.compress(data, level=_TRIAL_LEVEL))

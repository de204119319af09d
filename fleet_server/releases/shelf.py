"""Keeps the numbers of arrays on disk, in a file without a name.

A gigabyte of equal numbers is an upload of one megabyte, and a small model may answer with as much.
What lies in a mapped file costs the memory of this process nothing that the kernel cannot take
back, and the file goes with the last array that shows it, whatever becomes of the process.
"""

import math
import mmap
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Self

import numpy as np

from fleet_server.releases.pieces import Array

_ALIGNED_BYTES = 64
"""Where an array may begin, as the allocators of the runtimes have it."""

Order = Literal["C", "F"]


class Shelf:
    """Takes arrays piece by piece; one file for all, since each mapped one costs a handle.

    A context: what was taken out before its end stays, and nothing else does.
    """

    def __init__(self, folder: Path) -> None:
        """Open the file on the disk of a folder."""
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by the context
        self._places: dict[str, tuple[int, np.dtype[np.generic], tuple[int, ...], Order]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(
        self,
        name: str,
        data: Iterable[bytes | memoryview],
        dtype: np.dtype[np.generic],
        shape: tuple[int, ...],
        order: Order = "C",
    ) -> None:
        """Write the numbers of an array, whose bytes come in pieces.

        Raises:
            ValueError: if there are more of them, or fewer.
        """
        start = -(-self._file.tell() // _ALIGNED_BYTES) * _ALIGNED_BYTES
        self._file.seek(start)
        for piece in data:
            self._file.write(piece)
        if self._file.tell() - start != math.prod(shape) * dtype.itemsize:
            raise ValueError("an array has another size than its shape says")
        self._places[name] = (start, dtype, shape, order)

    def arrays(self) -> dict[str, Array]:
        """Return all of them, read-only, by name."""
        self._file.write(b"\0")  # what is empty cannot be mapped
        self._file.flush()
        size_bytes = self._file.tell()
        mapped = mmap.mmap(self._file.fileno(), size_bytes, access=mmap.ACCESS_READ)
        return {
            name: np.ndarray(shape, dtype, mapped, start, order=order)
            for name, (start, dtype, shape, order) in self._places.items()
        }

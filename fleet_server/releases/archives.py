"""Reads npz files that nobody trusts: numbers only, bounded before a byte is unpacked.

An npz file is a zip of npy files. Decides which are let in: no pickled objects, no more bytes than
the directory declares, and no more declared than the limits allow. Which arrays a model needs is
decided in :mod:`fleet_server.releases.examples`.
"""

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fleet_server.releases import limits
from fleet_server.releases.pieces import PIECE_BYTES
from fleet_server.releases.shelf import Shelf
from fleet_server.releases.states import Refusal

_NUMBERS = "biuf"
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    KeyError,
    NotImplementedError,  # a compression that this Python cannot undo
    RuntimeError,  # encrypted
    OSError,
    # numpy reads a header as Python's literals, and old ones with Python's tokenizer.
    SyntaxError,
    TypeError,
    MemoryError,
    tokenize.TokenError,
)


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """What an array claims to be; ``offset_bytes`` is where its numbers begin."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran: bool
    offset_bytes: int


def inspect(path: Path, field: str) -> dict[str, ArrayHeader]:
    """Check an npz file by its directory and the headers of its arrays; unpacks nothing else.

    Args:
        path: of the file.
        field: the name under which it was uploaded, for the message.

    Raises:
        Refusal: ``not_npz``, ``pickled`` or ``arrays_too_large``.
    """
    try:
        with _opened(path) as archive:
            members = archive.infolist()
            _bound(members, field)
            return {
                member.filename.removesuffix(".npy"): _header(archive, member, field)
                for member in members
            }
    except _BROKEN as error:
        raise _not_npz(field) from error


def load(
    path: Path, field: str, names: list[str], *, rows: int | None = None
) -> dict[str, NDArray[np.generic]]:
    """Return the named arrays of an npz file that :func:`inspect` lets pass, read-only.

    Their numbers are on a shelf beside ``path``.

    Args:
        path: of the file.
        field: the name under which it was uploaded, for the message.
        names: of arrays that are in it.
        rows: how many are wanted of each array's first axis at most; None: all.

    Raises:
        Refusal: as :func:`inspect` does, and if the numbers are not there.
    """
    headers = inspect(path, field)
    with Shelf(path.parent) as shelf:
        for name in names:
            header = headers[name]
            shape = header.shape
            if rows is not None and shape and not header.fortran:
                shape = (min(rows, shape[0]), *shape[1:])  # they lie in front of the others
            numbers = _numbers(path, field, name, header, math.prod(shape) * header.dtype.itemsize)
            shelf.put(name, numbers, header.dtype, shape, "F" if header.fortran else "C")
        found = shelf.arrays()
    return {name: array[:rows] if array.ndim else array for name, array in found.items()}


def _numbers(
    path: Path, field: str, name: str, header: ArrayHeader, size_bytes: int
) -> Iterator[bytes]:
    """Yield so many bytes of an array's numbers."""
    try:
        with _opened(path) as archive, archive.open(f"{name}.npy") as member:
            member.read(header.offset_bytes)
            while size_bytes:
                # zipfile hands out no more than the directory declares.
                piece = member.read(min(size_bytes, PIECE_BYTES))
                if not piece:
                    raise ValueError("the array ends too early")
                size_bytes -= len(piece)
                yield piece
    except _BROKEN as error:
        raise _not_npz(field) from error


class _Directory(io.FileIO):
    """A zip file of which no long directory is read: zipfile makes an object of each entry, so that
    a file of 100 MB would cost gigabytes before anybody could count them.
    """

    read_at_all = False

    def read(self, size: int | None = -1, /) -> bytes:
        if not self.read_at_all and size is not None and size > limits.ZIP_DIRECTORY_BYTES:
            raise ValueError("the directory of the zip file is too long")
        return super().read(size)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with _Directory(path) as file, zipfile.ZipFile(file) as archive:
        file.read_at_all = True
        yield archive


def _bound(members: list[zipfile.ZipInfo], field: str) -> None:
    names = [member.filename for member in members]
    if (
        not members
        or len(members) > limits.ARRAYS
        or len(set(names)) < len(names)
        or not all(name.endswith(".npy") for name in names)
    ):
        raise _not_npz(field)
    declared = sum(member.file_size for member in members)
    if declared > limits.ARRAYS_BYTES:
        raise Refusal(
            "data",
            "arrays_too_large",
            f"The arrays in {field} unpack to {declared} bytes.",
            f"Send fewer rows: at most {limits.ARRAYS_BYTES} bytes of numbers.",
            figure=declared,
            bound=limits.ARRAYS_BYTES,
        )


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, field: str) -> ArrayHeader:
    with archive.open(member) as file:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read(_Bounded(file), max_header_size=limits.NPY_HEADER_BYTES)
        offset_bytes = file.tell()
    if dtype.hasobject:
        raise Refusal(
            "data",
            "pickled",
            f"Array {member.filename!r} in {field} holds Python objects, not numbers.",
            "Save plain arrays of numbers, for example array.astype('float32').",
        )
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind not in _NUMBERS or offset_bytes + size != member.file_size:
        raise ValueError("not an array of numbers of the declared size")
    return ArrayHeader(dtype, shape, fortran, offset_bytes)


class _Bounded:
    """Hands out a header's few bytes and no more, whatever length the header declares."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, count: int = -1, /) -> bytes:
        if not 0 <= count <= limits.NPY_HEADER_BYTES:
            raise ValueError("the header of an array is too long")
        return self._file.read(count)


def _not_npz(field: str) -> Refusal:
    return Refusal(
        "data",
        "not_npz",
        f"{field} is not an npz file with 1 to {limits.ARRAYS} arrays of numbers.",
        "Write it with numpy.savez(file, INPUT_NAME=array), one array an input of the model.",
    )

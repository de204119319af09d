"""The files of one bench job: copied to where no child can write, and named by what is in them.

Decides how many rows a device is sent, and that nothing is served but bytes that were hashed as
they were copied. A candidate lies where a child of the laboratory wrote it, so it is taken only if
it is a plain file of the size that was found before.
"""

import hashlib
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fleet_contract import codec, limits
from fleet_contract.manifest import FileRef, TensorData
from fleet_contract.trust.bench import Entrant
from fleet_server.releases.laboratory.laboratory import head
from fleet_server.releases.laboratory.tasks import RawTensor
from fleet_server.releases.room import RESERVE_BYTES, free_bytes
from fleet_server.releases.timing import Heat, Runner, Unavailable

ROWS = 64
"""Rows that a device is sent: it takes them again from the start."""
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a job names; the files lie in ``folder`` under their digests."""

    folder: Path
    rival: Entrant
    candidates: list[Entrant]
    rows: FileRef

    @property
    def size_bytes(self) -> int:
        """How much a device fetches."""
        files = {item.artifact.digest: item.artifact for item in (self.rival, *self.candidates)}
        return sum(file.size_bytes for file in files.values()) + self.rows.size_bytes

    def remove(self) -> None:
        """Delete the files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def pack(heat: Heat, folder: Path) -> Parcel:
    """Copy what a heat needs into a new folder.

    Raises:
        Unavailable: if it is more than a device is asked to fetch, or cannot be copied.
    """
    runners = (heat.rival, *heat.candidates)
    if sum(runner.size_bytes for runner in runners) > limits.BENCH_BYTES - limits.BENCH_ROWS_BYTES:
        raise Unavailable("the candidates are too large to be sent")
    if len(heat.candidates) > limits.BENCH_CANDIDATES:
        raise Unavailable("there are too many candidates")
    folder.mkdir(mode=0o700, parents=True)
    try:
        if free_bytes(folder) < RESERVE_BYTES + sum(runner.size_bytes for runner in runners):
            raise Unavailable("the server's disk has no room for copies of the candidates")
        rows = _rows(heat.rows)
        digest = hashlib.sha256(rows).hexdigest()
        (folder / digest).write_bytes(rows)
        rival, *candidates = [_copy(runner, folder) for runner in runners]
        return Parcel(folder, rival, candidates, FileRef(digest, len(rows)))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise Unavailable(f"the candidates cannot be copied ({error.strerror})") from error
    except Unavailable:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _rows(tensors: Sequence[RawTensor]) -> bytes:
    """Return the first rows as a device reads them."""
    count = ROWS
    while count:
        data = codec.encode_msgpack(
            [
                TensorData(item.name, item.dtype, list(item.shape), _bytes(item))
                for item in head(tensors, count)
            ]
        )
        if len(data) <= limits.BENCH_ROWS_BYTES:
            return data
        count //= 2
    raise Unavailable("one row is too large to be sent")


def _bytes(tensor: RawTensor) -> bytes:
    dtype = np.dtype(tensor.dtype).newbyteorder("<")
    return np.memmap(tensor.path, dtype, "r", shape=tuple(tensor.shape)).tobytes()


def _copy(runner: Runner, folder: Path) -> Entrant:
    source = os.open(runner.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    half = folder / "half"
    with open(source, "rb") as file, half.open("wb") as copy:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode) or status.st_size != runner.size_bytes:
            raise Unavailable(f"{runner.name} is not the file that was made")
        hasher, left = hashlib.sha256(), runner.size_bytes
        while left and (piece := file.read(min(_CHUNK_BYTES, left))):
            hasher.update(piece)
            copy.write(piece)
            left -= len(piece)
    if left:
        raise Unavailable(f"{runner.name} is not the file that was made")
    half.rename(folder / hasher.hexdigest())
    return Entrant(runner.runtime, FileRef(hasher.hexdigest(), runner.size_bytes))

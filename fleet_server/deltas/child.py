"""The child process that makes one patch: ``python -m fleet_server.deltas.child OLD NEW PATCH``.

Decides how much time and memory that may take, how hard it tries, and that no patch leaves it which
does not make exactly the new file. It exits with 0 if the patch is there, 3 if it is not worth it.
"""

import hashlib
import mmap
import os
import resource
import sys
from pathlib import Path

from fleet_contract.deltas.decoder import Decoder
from fleet_contract.deltas.form import LARGEST_SHARE
from fleet_contract.errors import Reason, Refused
from fleet_server.deltas.encoder import LEVEL, encode

NOT_WORTH = 3
CPU_S = 600
"""Two gigabytes take about a minute."""
MEMORY_BYTES = 1024**3
"""Beyond the two files, which are mapped."""
NICENESS = 15
SMALL_SHARE = 0.5
SMALL_BYTES = 256 * 1024**2
SMALL_LEVEL = 19
"""Differences that compress well gain a tenth by the highest level; beyond ``SMALL_BYTES`` of new
file it takes too long.
"""
NOISE_LEVEL = 1
"""In what is nearly noise, finding repetitions by chance makes a file larger, by up to 7%."""


def main(old_path: str, new_path: str, patch_path: str) -> int:
    old, new = _mapped(old_path), _mapped(new_path)
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    memory = MEMORY_BYTES + len(old) + len(new)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    digests = [hashlib.sha256(data).hexdigest() for data in (old, new)]
    patch = Path(patch_path)
    largest = int(LARGEST_SHARE * len(new))
    size = _write(old, new, digests, patch, LEVEL)
    small = size <= SMALL_SHARE * len(new) and len(new) <= SMALL_BYTES
    again = patch.with_suffix(".again")
    other_size = _write(old, new, digests, again, SMALL_LEVEL if small else NOISE_LEVEL)
    if other_size < size:
        again.replace(patch)
        size = other_size
    else:
        again.unlink()
    if size > largest:
        return NOT_WORTH
    _check(old, patch, digests[1])
    return 0


def _mapped(path: str) -> memoryview:
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _write(old: memoryview, new: memoryview, digests: list[str], patch: Path, level: int) -> int:
    with open(patch, "wb") as file:
        encode(old, new, file.write, old_digest=digests[0], new_digest=digests[1], level=level)
        return file.tell()


def _check(old: memoryview, patch: Path, digest: str) -> None:
    made = hashlib.sha256()
    with open(patch, "rb") as file:
        for piece in Decoder(file.read).pieces(lambda at, size: bytes(old[at : at + size])):
            made.update(piece)
    if made.hexdigest() != digest:
        raise Refused(Reason.WRONG_HASH, "the patch does not make the new file")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

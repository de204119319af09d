"""The backup's file: a plain tar archive whose last member holds the SHA-256 of all others.

Decides which bytes are an archive of ours, one member at a time and in bounded memory: regular
files only, under names of a closed form, each once, each as long as it says. Tar's extensions
(links, devices, long names, sparse files) are refused, not interpreted: whoever made such a file,
it was not this program. Which members there must be is decided in :mod:`.contents`.
"""

import hashlib
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from fleet_server.errors import Invalid

SUMS = "SHA256SUMS"
BLOCK = tarfile.BLOCKSIZE
CHUNK = 1024 * 1024
MEMBERS = 1_000_000
"""Five thousand releases make about twenty thousand files."""
MEMBER_BYTES = 2 * 1024**3
"""The largest artifact there can be."""
SUMS_BYTES = 256 * MEMBERS
NAME_CHARACTERS = 200
_NAME = re.compile(r"[a-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*\Z")
_SUM = re.compile(rb"([0-9a-f]{64})  ([!-~]{1,200})\n")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive: its name, its size, and its bytes, to be read before the next one."""

    name: str
    size_bytes: int
    chunks: Iterator[bytes]

    def read(self, limit_bytes: int) -> bytes:
        """Return all of it.

        Raises:
            Invalid: if it is larger than that, or the archive ends in it.
        """
        if self.size_bytes > limit_bytes:
            raise refuse(f"{self.name} has {self.size_bytes} bytes")
        return b"".join(self.chunks)


class Writer:
    """Writes members one after another; :meth:`finish` writes the sums."""

    def __init__(self, file: BinaryIO, modified_ms: int) -> None:
        """Take a file that is open for writing, and the time that members get."""
        self._file = file
        self._modified_s = modified_ms // 1000
        self._sums: dict[str, str] = {}

    def add(self, name: str, size_bytes: int, chunks: Iterable[bytes]) -> None:
        """Write a member of exactly this size.

        Raises:
            Invalid: if the name is not one of ours, or the file has changed its size meanwhile.
            OSError: if it cannot be written.
        """
        if not _is_name(name) or name in self._sums or size_bytes > MEMBER_BYTES:
            raise Invalid("unexpected_file", f"{name[:200]!r} cannot be put into a backup.")
        self._head(name, size_bytes)
        hasher, left = hashlib.sha256(), size_bytes
        for chunk in chunks:
            left -= len(chunk)
            hasher.update(chunk)
            self._file.write(chunk)
        if left:
            raise Invalid(
                "file_changed", f"{name} changed while it was copied.", "Make the backup again."
            )
        self._file.write(bytes(-size_bytes % BLOCK))
        self._sums[name] = hasher.hexdigest()

    def add_bytes(self, name: str, data: bytes) -> None:
        """Write a small member."""
        self.add(name, len(data), [data])

    def finish(self) -> None:
        """Write the sums and the archive's end."""
        lines = "".join(f"{digest}  {name}\n" for name, digest in self._sums.items()).encode()
        self._head(SUMS, len(lines))
        self._file.write(lines + bytes(-len(lines) % BLOCK) + bytes(2 * BLOCK))

    def _head(self, name: str, size_bytes: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size_bytes, 0o600, self._modified_s
        self._file.write(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))


def members(file: BinaryIO) -> Iterator[Member]:
    """Yield the members, the sums as the last one.

    Raises:
        Invalid: where the file stops being an archive of ours. OSError: if it cannot be read.
    """
    seen: set[str] = set()
    while (head := _exactly(file, BLOCK)) != bytes(BLOCK):
        info = _read_head(head)
        if SUMS in seen:
            raise refuse(f"{info.name} comes after the sums")
        if info.name in seen:
            raise refuse(f"{info.name} is there twice")
        if len(seen) >= MEMBERS:
            raise refuse(f"it has more than {MEMBERS} members")
        seen.add(info.name)
        chunks = _body(file, info.size)
        yield Member(info.name, info.size, chunks)
        for _ in chunks:
            pass
        _exactly(file, -info.size % BLOCK)
    if SUMS not in seen:
        raise refuse("it ends before its sums")


def read_sums(file: BinaryIO) -> dict[str, str]:
    """Read the whole archive and return name → SHA-256 of every member but the sums.

    Raises:
        Invalid: if a sum is wrong, missing, or of a member that is not there.
    """
    found: dict[str, str] = {}
    listed: dict[str, str] = {}
    for member in members(file):
        if member.name == SUMS:
            listed = _parse_sums(member.read(SUMS_BYTES))
            continue
        hasher = hashlib.sha256()
        for chunk in member.chunks:
            hasher.update(chunk)
        found[member.name] = hasher.hexdigest()
    for name in sorted(found.keys() | listed.keys()):
        if found.get(name) != listed.get(name):
            raise refuse(f"{name} is damaged or missing")
    return found


def refuse(why: str) -> Invalid:
    """Return the error for a file that is no backup."""
    return Invalid(
        "bad_backup",
        f"This is no whole backup: {why}.",
        "Take another copy of it, or an older backup. Nothing was changed.",
    )


def _is_name(name: str) -> bool:
    return len(name) <= NAME_CHARACTERS and _NAME.match(name) is not None


def _read_head(head: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(head, "ascii", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise refuse(f"a member's head cannot be read ({type(error).__name__})") from error
    if info.type != tarfile.REGTYPE or info.linkname:
        raise refuse(f"{info.name[:200]!r} is not a plain file")
    if info.name != SUMS and not _is_name(info.name):
        raise refuse(f"{info.name[:200]!r} is no name of a member")
    limit = SUMS_BYTES if info.name == SUMS else MEMBER_BYTES
    if not 0 <= info.size <= limit:
        raise refuse(f"{info.name} has {info.size} bytes")
    return info


def _body(file: BinaryIO, size_bytes: int) -> Iterator[bytes]:
    left = size_bytes
    while left:
        chunk = _exactly(file, min(left, CHUNK))
        left -= len(chunk)
        yield chunk


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise refuse("it ends too early")
    return data


def _parse_sums(data: bytes) -> dict[str, str]:
    sums: dict[str, str] = {}
    at = 0
    while at < len(data):
        match = _SUM.match(data, at)
        if match is None:
            raise refuse("its sums cannot be read")
        sums[match[2].decode("ascii")] = match[1].decode("ascii")
        at = match.end()
    return sums

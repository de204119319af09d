"""The metadata files of the repository, and which of them the world may see.

``metadata/<version>.<role>.json`` and ``metadata/timestamp.json``; ``targets/`` holds the few files
that the top-level role vouches for. A versioned file is never changed once something committed
refers to it, and none is shown before.
"""

import contextlib
import hashlib
import re
from pathlib import Path

from tuf.api.metadata import Metadata, Snapshot, Timestamp

from fleet_server.trust import durable

KEPT_VERSIONS = 8
"""Older versions of a role stay for devices that are between a snapshot and what it names."""

_VERSIONED = re.compile(
    r"(?P<version>[1-9][0-9]{0,8})\.(?P<role>[a-z0-9][a-z0-9._-]{0,90})\.json\Z"
)
_TARGET = re.compile(r"[0-9a-f]{64}\.[a-z]{1,40}\.(json|pem)\Z")


class CatalogueFiles:
    """Reads and writes below one folder."""

    def __init__(self, folder: Path) -> None:
        self._metadata = folder / "metadata"
        self._targets = folder / "targets"

    def make(self) -> None:
        """Make the folders. Raises OSError."""
        for place in (self._metadata, self._targets):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Write a metadata file durably. Raises OSError."""
        durable.write_file(self._metadata / name, data)

    def write_document(self, path: str, data: bytes) -> None:
        """Write a file that the top-level role vouches for. Raises OSError."""
        durable.write_file(self._targets / f"{hashlib.sha256(data).hexdigest()}.{path}", data)

    def read(self, name: str) -> bytes:
        """Return a metadata file. Raises OSError."""
        return (self._metadata / name).read_bytes()

    def read_target(self, name: str) -> bytes | None:
        """Return a target as the world asks for it, None if there is none of that name."""
        if not _TARGET.match(name):
            return None
        with contextlib.suppress(OSError):
            return (self._targets / name).read_bytes()
        return None

    def newest_root(self) -> int:
        """Return the highest version of an unbroken line of roots, 0 if there is none."""
        version = 0
        while (self._metadata / f"{version + 1}.root.json").is_file():
            version += 1
        return version

    def committed(self) -> dict[str, bytes]:
        """Return name → bytes of every root, the timestamp, and all that the timestamp leads to.

        Raises OSError; FileNotFoundError if a version went out of use while this read.
        """
        found = {"timestamp.json": self.read("timestamp.json")}
        timestamp = Metadata[Timestamp].from_bytes(found["timestamp.json"]).signed
        snapshot_name = f"{timestamp.snapshot_meta.version}.snapshot.json"
        found[snapshot_name] = self.read(snapshot_name)
        snapshot = Metadata[Snapshot].from_bytes(found[snapshot_name]).signed
        roles = [f"{meta.version}.{name}" for name, meta in snapshot.meta.items()]
        roots = [f"{version}.root.json" for version in range(1, self.newest_root() + 1)]
        for name in (*roots, *roles):
            found[name] = self.read(name)
        return found

    def prune(self, role: str) -> None:
        """Remove the versions of a role that went out of use long ago."""
        versions = sorted(
            named[1]
            for path in self._metadata.glob(f"*.{role}.json")
            if (named := parse(path.name)) is not None and named[0] == role
        )
        for version in versions[: -KEPT_VERSIONS - 1]:
            with contextlib.suppress(OSError):
                (self._metadata / f"{version}.{role}.json").unlink()

    def sweep(self, newest: int) -> None:
        """Remove targets metadata above this version: written before a crash, never shown.

        Raises OSError.
        """
        for path in self._metadata.iterdir():
            named = parse(path.name)
            if named is not None and named[0] not in {"root", "snapshot"} and named[1] > newest:
                path.unlink()


def parse(name: str) -> tuple[str, int] | None:
    """Return role and version of a versioned file's name, None if it is none."""
    match = _VERSIONED.match(name)
    return (match["role"], int(match["version"])) if match else None

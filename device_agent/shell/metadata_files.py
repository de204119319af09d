"""The trusted metadata on flash: one file a role, as it was signed, under the role's quoted name.

Decides that only what has been verified is written, durably, and how much of it is kept: the files
of delegated roles are a cache, whose oldest give way. What is verified against what is decided in
:mod:`device_agent.shell.metadata_refresh`.
"""

import contextlib
from pathlib import Path
from urllib.parse import quote

import msgspec

from device_agent.shell import flash
from fleet_contract import codec, limits
from fleet_contract.errors import InvalidName, Refused
from fleet_contract.messages.presence import Seen
from fleet_contract.names import check_model

TOP_LEVEL = frozenset({"root", "timestamp", "snapshot", "targets"})
DELEGATED_FILES = 64
"""Delegated roles kept; a device that runs a few models asks for a few of them."""
DELEGATED_BYTES = 16 * 1024 * 1024
"""What the delegated roles' files may take together."""


_FAMILY = "model."


class _Meta(msgspec.Struct, frozen=True):
    version: int


class _Signed(msgspec.Struct, frozen=True):
    version: int
    meta: dict[str, _Meta] = {}


class _File(msgspec.Struct, frozen=True):
    signed: _Signed


class MetadataFiles:
    """The folder of trusted metadata."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, and make it if it is missing. Raises OSError."""
        self.folder = folder
        flash.make_folder(folder)

    def load(self, role: str) -> bytes | None:
        """Return what was saved for a role, None if there is nothing that can be read."""
        return flash.read_file(self._path(role), limit_bytes=limits.TARGETS_BYTES)

    def save(self, role: str, data: bytes) -> None:
        """Keep the verified metadata of a role, durably. Raises StepFailed."""
        try:
            flash.write_file(self._path(role), data)
        except OSError as error:
            raise flash.failure(error, f"the metadata of {role[:80]} cannot be stored") from error
        if role not in TOP_LEVEL:
            self._trim(self._path(role))

    def _trim(self, newest: Path) -> None:
        kept, kept_bytes = 1, newest.lstat().st_size
        others = [
            (status.st_mtime_ns, status.st_size, path)
            for path in self.folder.iterdir()
            if path.stem not in TOP_LEVEL and path != newest
            for status in (path.lstat(),)
        ]
        for _, size_bytes, path in sorted(others, reverse=True):
            kept, kept_bytes = kept + 1, kept_bytes + size_bytes
            if kept > DELEGATED_FILES or kept_bytes > DELEGATED_BYTES:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _path(self, role: str) -> Path:
        # Quoted, a name holds no separator; and the suffix makes ".." a file like any other.
        return self.folder / f"{quote(role, safe='')}.json"


def seen(files: MetadataFiles) -> Seen:
    """Return the versions that are stored, 0 for what is not: these bytes were verified before."""
    snapshot = _read(files, "snapshot")
    return Seen(
        root=_read(files, "root").version,
        timestamp=_read(files, "timestamp").version,
        snapshot=snapshot.version,
        targets=max((item.version for item in snapshot.meta.values()), default=0),
        families=sorted(filter(None, map(_family, snapshot.meta)))[: limits.FAMILIES],
    )


def _read(files: MetadataFiles, role: str) -> _Signed:
    data = files.load(role)
    try:
        return codec.decode_json(data or b"", _File, limit_bytes=limits.TARGETS_BYTES).signed
    except Refused:
        return _Signed(0)


def _family(name: str) -> str:
    """Return the model whose role a metadata file's name is, empty for any other."""
    if not name.startswith(_FAMILY):
        return ""
    try:
        return check_model(name.removeprefix(_FAMILY).removesuffix(".json"))
    except InvalidName:
        return ""

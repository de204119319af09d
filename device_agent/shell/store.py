"""The store: the one folder on flash in which everything lies that an agent must not forget.

``record`` (and ``record.previous``), ``ballast``, ``outbox``, ``manifests/<digest>.json``,
``artifacts/<digest>``, ``partial/<digest>`` and, while it is made of another artifact and a patch,
``partial/<digest>.patched``. Decides how much of the disk may be used, what is read
when the record is damaged, and what is swept away. Paths are built from checked digests only. Who
wants which release is decided in the core.
"""

import contextlib
import hashlib
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from device_agent.core.state import RECORD_BYTES, Record, read_record, write_record
from device_agent.errors import StepFailed
from device_agent.shell import flash
from fleet_contract import limits
from fleet_contract.errors import Reason, Refused
from fleet_contract.manifest import FileRef
from fleet_contract.names import DIGEST_PATTERN

QUOTA_BYTES = 4 * 1024**3
"""What artifacts may take together."""
RESERVE_BYTES = 16 * 1024**2
"""What stays free on the disk: the record must always be writable."""
OUTBOX_BYTES = 16 * 1024**2
BALLAST_BYTES = 512 * 1024
"""Given up when somebody else fills the disk, so that a rollback can still be stored. A record of
64 models takes less."""

_LOG = logging.getLogger(__name__)
_DIGEST = re.compile(DIGEST_PATTERN)
_HEADER_BYTES = 65
_PATCHED = ".patched"


class Store:
    """One agent's folder. Thread-safe as far as different digests are concerned."""

    def __init__(
        self, folder: Path, *, quota_bytes: int = QUOTA_BYTES, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        """Open the folder, and make what is missing in it. Raises OSError."""
        self.folder = folder
        self._quota_bytes = quota_bytes
        self._reserve_bytes = reserve_bytes
        self._artifacts = folder / "artifacts"
        self._manifests = folder / "manifests"
        self._partial = folder / "partial"
        self._ballast = folder / "ballast"
        for place in (folder, self._artifacts, self._manifests, self._partial):
            flash.make_folder(place)
        self.keep_ballast()

    # --- the record ---------------------------------------------------------------------------

    def save_record(self, record: Record) -> None:
        """Store the record durably, and keep the one before. Raises OSError."""
        data = write_record(record)
        try:
            self._save_record(data)
        except OSError as error:
            if not flash.is_full(error) or not self._ballast.exists():
                raise
            _LOG.error("the disk is full: the space kept for the record is used")
            self._ballast.unlink()
            self._save_record(data)

    def keep_ballast(self) -> None:
        """Set space aside for the record, if there is any. What it is for may have used it up."""
        if self._ballast.exists():
            return
        try:
            flash.write_file(self._ballast, bytes(BALLAST_BYTES))
        except OSError as error:
            _LOG.error("no space can be kept for the record: %s", error.strerror)

    def _save_record(self, data: bytes) -> None:
        path, previous = self._records()
        beside = path.with_name(".record.next")
        flash.write_file(beside, hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
        # Between these two the newest record is the previous one, which is the state before.
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, previous)
        flash.move_file(beside, path)

    def load_record(self) -> Record | None:
        """Return the record, or the one before if it is damaged, or None if both are."""
        for path in self._records():
            data = flash.read_file(path, limit_bytes=RECORD_BYTES + _HEADER_BYTES)
            if data is None:
                continue
            header, _, body = data.partition(b"\n")
            if header == hashlib.sha256(body).hexdigest().encode():
                try:
                    return read_record(body)
                except Refused as refused:
                    _LOG.error("%s is of no known form: %s", path.name, refused.detail)
            else:
                _LOG.error("%s is damaged", path.name)
        return None

    def _records(self) -> tuple[Path, Path]:
        return self.folder / "record", self.folder / "record.previous"

    # --- the outbox ---------------------------------------------------------------------------

    def save_outbox(self, data: bytes) -> None:
        """Store the windows that the server has not got. Raises OSError."""
        flash.write_file(self.folder / "outbox", data)

    def load_outbox(self) -> bytes | None:
        """Return what :meth:`save_outbox` stored, None if there is nothing that can be read."""
        return flash.read_file(self.folder / "outbox", limit_bytes=OUTBOX_BYTES)

    def clear_outbox(self) -> None:
        """Forget the stored windows."""
        (self.folder / "outbox").unlink(missing_ok=True)

    # --- releases -----------------------------------------------------------------------------

    def save_manifest(self, digest: str, data: bytes) -> None:
        """Store a manifest under its digest. Raises StepFailed."""
        try:
            flash.write_file(self._manifest(digest), data)
        except OSError as error:
            raise flash.failure(error, "the manifest cannot be stored") from error

    def load_manifest(self, digest: str) -> bytes | None:
        """Return the bytes of a manifest if they have this digest, None otherwise."""
        data = flash.read_file(self._manifest(digest), limit_bytes=limits.MANIFEST_BYTES)
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            return None
        return data

    def artifact(self, digest: str) -> Path:
        """Return where a complete file lies, or would."""
        return self._artifacts / _checked(digest)

    def partial(self, digest: str) -> Path:
        """Return where a file lies while it is downloaded."""
        return self._partial / _checked(digest)

    def patched(self, digest: str) -> Path:
        """Return where a file lies while it is made of another one and a patch."""
        return self._partial / f"{_checked(digest)}{_PATCHED}"

    def has(self, file: FileRef) -> bool:
        """Say whether the complete file is here. Its hash is checked by whoever uses it."""
        try:
            status = self.artifact(file.digest).lstat()
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == file.size_bytes

    def make_room(self, size_bytes: int) -> None:
        """See whether so much more may be stored.

        Raises:
            StepFailed: ``disk_full`` if not.
        """
        used = sum(path.lstat().st_size for path in (*_files(self._artifacts),))
        if used + size_bytes > self._quota_bytes:
            raise StepFailed(
                Reason.DISK_FULL,
                f"{size_bytes} more bytes are above the quota of {self._quota_bytes}",
            )
        free = shutil.disk_usage(self.folder).free
        if free < size_bytes + self._reserve_bytes:
            raise StepFailed(
                Reason.DISK_FULL, f"{size_bytes} more bytes are needed, {free} are free"
            )

    def complete(self, digest: str, came_as: Path | None = None) -> None:
        """Turn a partial or a patched file, hashed and synced, into an artifact. Raises OSError."""
        flash.move_file(came_as or self.partial(digest), self.artifact(digest))

    def drop_manifest(self, digest: str) -> None:
        """Remove a manifest; its files go with the next :meth:`sweep`."""
        with contextlib.suppress(OSError):
            self._manifest(digest).unlink()

    def manifests(self) -> list[str]:
        """Return the digests of the manifests that are here."""
        return [
            path.stem
            for path in _files(self._manifests)
            if path.suffix == ".json" and _DIGEST.match(path.stem)
        ]

    def sweep(self, needed: Iterable[str]) -> list[str]:
        """Remove every file that is none of these digests; return the names of what went."""
        keep = set(needed)
        gone = [
            path
            for place in (self._artifacts, self._partial)
            for path in _files(place)
            if path.name.removesuffix(_PATCHED) not in keep
        ]
        for path in gone:
            with contextlib.suppress(OSError):
                path.unlink()
        self.keep_ballast()
        return [path.name for path in gone]

    def _manifest(self, digest: str) -> Path:
        return self._manifests / f"{_checked(digest)}.json"


def _files(place: Path) -> list[Path]:
    """Return the entries of a folder that are no folders; a link counts as a file, unfollowed."""
    with os.scandir(place) as entries:
        return [Path(entry) for entry in entries if not entry.is_dir(follow_symlinks=False)]


def _checked(digest: str) -> str:
    if not _DIGEST.match(digest):
        raise StepFailed(Reason.MALFORMED, f"not a digest: {digest[:80]!r}")
    return digest

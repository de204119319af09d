"""The store: immutable files by their SHA-256, in the layout that devices fetch.

A file appears under its name only when all of it is on disk: hashed while written, then fsync,
rename, fsync of the folder. Nothing is ever changed or overwritten with other bytes. With a mirror,
an artifact is there, too, before it has its name here.
"""

import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fleet_contract.manifest import FileRef, artifact_path, manifest_path
from fleet_contract.names import DIGEST_PATTERN, MODEL_PATTERN
from fleet_server.errors import Invalid
from fleet_server.object_store import ObjectStore
from fleet_server.releases.mirror import ARTIFACTS, Mirror

_DIGEST = DIGEST_PATTERN.removeprefix("^").removesuffix(r"\Z")
_MODEL = MODEL_PATTERN.removeprefix("^").removesuffix(r"\Z")
_ROOMS = ("artifacts", "manifests", "provenance", "cards")
PROVENANCE_BYTES = 256 * 1024
_FORMS = (
    re.compile(rf"artifacts/{_MODEL}/(?P<digest>{_DIGEST})\Z"),
    re.compile(rf"manifests/{_MODEL}/(?P<digest>{_DIGEST})\.json\Z"),
)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of the store, found by the path that devices ask for."""

    path: Path
    digest: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the store by its path, and when it was last written."""

    path: str
    size_bytes: int
    changed_ms: int


class Store:
    """The store below one folder, which is made if need be.

    Attributes:
        mirror: where its artifacts are, too, None for nowhere.
    """

    def __init__(self, root: Path, objects: ObjectStore | None = None) -> None:
        self._root = root
        self.mirror = None if objects is None else Mirror(objects, root.name, root)
        self._fresh = root / "fresh"
        self._placing = threading.Lock()
        self._fresh.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self._fresh.iterdir():
            leftover.unlink()  # of a server that was killed while writing

    def put_artifact(self, model: str, chunks: Iterable[bytes]) -> FileRef:
        """Write an artifact and return what it is called.

        Raises:
            Unavailable: if the mirror does not take it; then it is not here either.
        """
        fresh, file = self._write(chunks)
        self._place(fresh, artifact_path(model, file.digest))
        return file

    def put_manifest(self, model: str, data: bytes) -> FileRef:
        """Write a manifest and return what it is called."""
        fresh, file = self._write([data])
        self._place(fresh, manifest_path(model, file.digest))
        return file

    def put_provenance(self, model: str, data: bytes) -> FileRef:
        """Write what proves where a release comes from: for operators, not for devices."""
        fresh, file = self._write([data])
        self._place(fresh, provenance_path(model, file.digest))
        return file

    def read_provenance(self, model: str, digest: str) -> bytes | None:
        """Return what :meth:`put_provenance` wrote, None if it is gone or is not that any more."""
        return self._read(provenance_path(model, digest), digest, PROVENANCE_BYTES)

    def put_card(self, model: str, data: bytes) -> FileRef:
        """Write a model card: for operators, not for devices."""
        fresh, file = self._write([data])
        self._place(fresh, card_path(model, file.digest))
        return file

    def read_card(self, model: str, digest: str, *, limit_bytes: int) -> bytes | None:
        """Return what :meth:`put_card` wrote, None if it is gone or is not that any more."""
        return self._read(card_path(model, digest), digest, limit_bytes)

    def find(self, path: str) -> StoredFile | None:
        """Return the file that a device asks for, None if there is none.

        Only the two forms of paths that the contract knows are looked up: a path that says
        anything else never reaches the file system.

        Raises:
            Invalid: if the path has neither form.
        """
        match = next(filter(None, (form.match(path) for form in _FORMS)), None)
        if match is None:
            raise Invalid(
                "bad_store_path",
                "This is no path of the store.",
                "Paths are artifacts/MODEL/DIGEST and manifests/MODEL/DIGEST.json.",
            )
        found = self._root / path
        return StoredFile(found, match["digest"]) if found.is_file() else None

    def files(self) -> Iterator[Entry]:
        """Yield every file that is in the store; one that goes meanwhile may be left out."""
        for room in _ROOMS:
            for path in sorted((self._root / room).glob("*/*")):
                try:
                    status = path.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                name = path.relative_to(self._root).as_posix()
                yield Entry(name, status.st_size, status.st_mtime_ns // 1_000_000)

    def remove(self, path: str, *, not_since_ms: int | None = None) -> bool:
        """Remove a file of :meth:`files`, unless it was written again since that time.

        What is in the mirror goes when that is settled next: whoever removes waits for nobody.

        Whoever puts the same content once more, puts it before this looks, and then it stays, or
        after it is gone, and then it is there again.
        """
        target = self._root / path
        with self._placing:
            try:
                changed_ms = target.stat(follow_symlinks=False).st_mtime_ns // 1_000_000
                if not_since_ms is not None and changed_ms >= not_since_ms:
                    return False
                if self.mirror is not None and path.startswith(ARTIFACTS):
                    self.mirror.unsettle(path)
                target.unlink()
            except FileNotFoundError:
                return False
        sync_folder(target.parent)
        return True

    def _read(self, path: str, digest: str, limit_bytes: int) -> bytes | None:
        try:
            with (self._root / path).open("rb") as file:
                data = file.read(limit_bytes)
        except FileNotFoundError:
            return None
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def _write(self, chunks: Iterable[bytes]) -> tuple[Path, FileRef]:
        handle, name = tempfile.mkstemp(dir=self._fresh)
        fresh = Path(name)
        hasher, size = hashlib.sha256(), 0
        try:
            with os.fdopen(handle, "wb") as file:
                for chunk in chunks:
                    hasher.update(chunk)
                    size += file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        return fresh, FileRef(hasher.hexdigest(), size)

    def _place(self, fresh: Path, path: str) -> None:
        target = self._root / path
        if not target.parent.exists():
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(target.parent.parent)
            sync_folder(self._root)
        if self.mirror is None:
            self._name(fresh, target)
        else:
            try:
                self.mirror.put(path, fresh, lambda: self._name(fresh, target))
            except BaseException:
                fresh.unlink(missing_ok=True)
                raise

    def _name(self, fresh: Path, target: Path) -> None:
        with self._placing:
            # Written just now, however long the writing took: its age is counted from here.
            os.utime(fresh)
            fresh.replace(target)
        sync_folder(target.parent)


def provenance_path(model: str, digest: str) -> str:
    """Return where :meth:`Store.put_provenance` writes."""
    # Both come from the database, where only what has their form is written.
    return f"provenance/{model}/{digest}.json"


def card_path(model: str, digest: str) -> str:
    return f"cards/{model}/{digest}.json"


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

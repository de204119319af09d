"""The second place of a store's artifacts: an object store, from which devices may be served.

Decides that the folder says what there is. An object is put before its file gets its name, and
removed after the file has gone. In between a note of it lies in a folder of its own; whoever looks
there later, also after a crash, asks the folder and keeps or removes the object. So no object that
the folder has is ever removed, and none stays that it has not.
"""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from fleet_server.object_store import ObjectStore
from fleet_server.trust.durable import sync_folder

ARTIFACTS = "artifacts/"
UNSETTLED = "unsettled"
"""The folder of the notes, beside the store: no backup needs them."""
_BETWEEN = "."
"""Between model and digest in the name of a note; neither can have it."""


class Mirror:
    """Keeps the artifacts of the store in ``root`` also as objects below the key ``room``."""

    def __init__(self, objects: ObjectStore, room: str, root: Path) -> None:
        self._objects = objects
        self._room = room
        self._root = root
        self._unsettled = root.parent / UNSETTLED / room
        self._unsettled.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._alone = threading.Lock()
        self._known: frozenset[str] = frozenset()

    def put(self, path: str, fresh: Path, place: Callable[[], None]) -> None:
        """Put an object, then let ``place`` give its file the name ``path`` in the folder.

        Raises:
            Unavailable: if it cannot be put; then nothing was placed.
        """
        if not path.startswith(ARTIFACTS):
            place()
            return
        with self._alone:
            note = self.unsettle(path)
            self._objects.put(self._key(path), fresh)
            place()
            note.unlink(missing_ok=True)
            self._known |= {path}

    def unsettle(self, path: str) -> Path:
        """Note durably that an object may not be as the folder says; return the note."""
        _, model, digest = path.split("/")
        note = self._unsettled / f"{model}{_BETWEEN}{digest}"
        note.touch(mode=0o600)
        sync_folder(self._unsettled)
        return note

    def settle(self) -> int:
        """Remove the objects whose files have gone, and return how many.

        Raises:
            Unavailable: if one cannot be removed; it stays noted.
        """
        removed = 0
        for note in sorted(self._unsettled.iterdir()):
            path = ARTIFACTS + note.name.replace(_BETWEEN, "/")
            with self._alone:
                if not (self._root / path).is_file():
                    self._known -= {path}
                    self._objects.remove(self._key(path))
                    removed += 1
                note.unlink(missing_ok=True)
        return removed

    def complete(self, files: Iterable[tuple[str, int]]) -> int:
        """Put every artifact of ``files`` that is missing or of another size; return how many.

        Args:
            files: path and size in bytes of what the folder has.

        Raises:
            Unavailable: if the objects cannot be listed, or one cannot be put.
        """
        sizes = self._objects.sizes(self._key(ARTIFACTS.rstrip("/")))
        put = 0
        for path, size_bytes in files:
            if not path.startswith(ARTIFACTS):
                continue
            with self._alone:
                if not (self._root / path).is_file():
                    continue
                if sizes.get(self._key(path)) != size_bytes:
                    self._objects.put(self._key(path), self._root / path)
                    put += 1
                self._known |= {path}
        return put

    def lend(self, path: str) -> str | None:
        """Return a URL for an artifact whose object was seen, None for any other.

        Raises:
            Unavailable: if there can be none now.
        """
        return self._objects.lend(self._key(path)) if path in self._known else None

    def _key(self, path: str) -> str:
        return f"{self._room}/{path}"

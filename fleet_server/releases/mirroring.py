"""The worker that keeps an object store as the folders say: what is missing is put, what went goes.

Decides when: at the start and every hour by a listing, every minute what was noted. An object store
that does not answer costs a line in the log: devices are served from the folders.
"""

import threading
from collections.abc import Sequence

import structlog

from fleet_server.errors import Unavailable
from fleet_server.releases.mirror import Mirror
from fleet_server.releases.store import Store

EVERY_S = 60.0
LIST_EVERY = 60
"""Looks, from one listing to the next."""
_NOT_KEPT_UP = "the object store cannot be kept up"

log = structlog.get_logger(__name__)


class Mirroring:
    """Owns one worker thread, for stores that have a mirror; without one it does nothing."""

    def __init__(self, stores: Sequence[Store], *, every_s: float = EVERY_S) -> None:
        self._mirrored = [(store, store.mirror) for store in stores if store.mirror is not None]
        self._every_s = every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirroring", daemon=True)

    def start(self) -> None:
        """Begin, if there is something to do."""
        if self._mirrored:
            self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End; an object that is being put is given up with the process."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def look(self, *, listing: bool) -> None:
        """Settle what was noted, and complete what is there if ``listing``.

        What cannot be removed stays noted and is logged: who may put but not remove still lends.

        Raises:
            Unavailable: if what is there cannot be completed.
        """
        for _, mirror in self._mirrored:
            _settle(mirror)
        for store, mirror in self._mirrored if listing else ():
            files = ((entry.path, entry.size_bytes) for entry in store.files())
            if put := mirror.complete(files):
                log.info("missing objects put", objects=put)

    def _run(self) -> None:
        looks = 0
        while not self._stopping.is_set():
            try:
                self.look(listing=looks % LIST_EVERY == 0)
                looks += 1
            except Unavailable as error:
                # Not counted: what a listing should have found is looked for again.
                log.error(_NOT_KEPT_UP, why=error.detail)
            except Exception:
                # The worker must outlive whatever the disk does to it.
                log.exception(_NOT_KEPT_UP)
            self._stopping.wait(self._every_s)


def _settle(mirror: Mirror) -> None:
    try:
        if removed := mirror.settle():
            log.info("objects removed", objects=removed)
    except Unavailable as error:
        log.error(_NOT_KEPT_UP, why=error.detail)

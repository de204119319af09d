"""The worker that takes out of the store what nobody needs, in two phases.

Decides when: a file that nobody needs is marked, and goes at a later look if it is still needed by
nobody, a grace after it was marked, and if it was not written again since. So whoever began before
(a push of the same content, a backup, a device that was just told of a release) ends before.
What is needed is in :mod:`.need`.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlmodel import Session

from fleet_server.audit import service as audit
from fleet_server.clock import Clock
from fleet_server.collection import repository
from fleet_server.collection.need import Need, find_need
from fleet_server.data_folder import sweeping
from fleet_server.database import Database
from fleet_server.releases import service as releases
from fleet_server.releases.resumable import ResumableUploads
from fleet_server.releases.staging import Staging
from fleet_server.releases.store import Entry, Store
from fleet_server.releases.upload_audit import note
from fleet_server.trust.catalogue.repository import Catalogue

STORE, PATCHES = "store", "deltas"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Garbage:
    """A file that nobody needs; it goes at the first look after ``due_ms``."""

    path: str
    size_bytes: int
    marked_ms: int
    due_ms: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a look found, and what it removed: always nothing of a dry run."""

    kept_files: int
    kept_bytes: int
    garbage: list[Garbage]
    removed: list[Garbage]


class Collector:
    """Owns one worker thread.

    Args:
        data_dir: the server's folder.
        database: knows who needs what.
        staging: whose store and uploads it looks after.
        patches: the store of the patches.
        uploads: in pieces; the expired ones go, too.
        catalogue: what is vouched for.
        clock: the server's.
        fleet: whose devices count.
        interval_ms: between two looks; 0: only when asked.
        grace_ms: between mark and removal.
    """

    def __init__(
        self,
        data_dir: Path,
        database: Database,
        staging: Staging,
        patches: Store,
        uploads: ResumableUploads,
        catalogue: Catalogue,
        clock: Clock,
        *,
        fleet: str,
        interval_ms: int,
        grace_ms: int,
    ) -> None:
        self._data_dir = data_dir
        with sweeping(data_dir):
            pass  # the lock has to be there before the first backup asks for it
        self._database = database
        self._staging = staging
        self._stores = {STORE: staging.store, PATCHES: patches}
        self._uploads = uploads
        self._catalogue = catalogue
        self._clock = clock
        self._fleet = fleet
        self._interval_s = interval_ms / 1000
        self._grace_ms = grace_ms
        self._looking = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def start(self) -> None:
        """Begin to look now and then, if that is wanted."""
        if self._interval_s:
            self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End after the present look."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def look(self, *, dry_run: bool, user: str = audit.SYSTEM, correlation_id: str = "") -> Report:
        """Find what nobody needs; unless it is a dry run, mark it and remove what is due."""
        with self._looking:
            now_ms = self._clock.now_ms()
            # The files first: what is written after that is not in question.
            files = list(self._files())
            with self._database.reading() as session:
                need = self._need(session)
                marks = {path: row.marked_ms for path, row in repository.marks(session).items()}
            found = [entry for entry in files if not _holds(need, entry.path)]
            garbage = [self._judge(entry, marks, now_ms) for entry in found]
            removed: list[Garbage] = []
            if not dry_run:
                self._mark(garbage, marks, now_ms)
                due = [item for item in garbage if item.due_ms <= now_ms]
                removed = self._remove(due, user, correlation_id, now_ms) if due else []
                self._sweep_uploads(now_ms)
            gone = {item.path for item in removed}
            return Report(
                len(files) - len(found),
                sum(entry.size_bytes for entry in files) - sum(e.size_bytes for e in found),
                [item for item in garbage if item.path not in gone],
                removed,
            )

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look(dry_run=False)
            except Exception:
                # The worker must outlive whatever the database or the disk does to it.
                log.exception("the store cannot be looked through now")
            self._stopping.wait(self._interval_s)

    def _files(self) -> Iterator[Entry]:
        for room, store in self._stores.items():
            for entry in store.files():
                yield Entry(f"{room}/{entry.path}", entry.size_bytes, entry.changed_ms)

    def _need(self, session: Session) -> Need:
        return find_need(session, self._fleet, self._catalogue, self._staging.store)

    def _judge(self, entry: Entry, marks: dict[str, int], now_ms: int) -> Garbage:
        marked_ms = marks.get(entry.path)
        if marked_ms is None or entry.changed_ms >= marked_ms:
            marked_ms = now_ms  # new, or written again since: the grace begins anew
        return Garbage(entry.path, entry.size_bytes, marked_ms, marked_ms + self._grace_ms)

    def _mark(self, garbage: list[Garbage], marks: dict[str, int], now_ms: int) -> None:
        fresh = [item for item in garbage if item.marked_ms == now_ms]
        stale = set(marks) - {item.path for item in garbage}
        if fresh or stale:
            with self._database.transaction() as session:
                repository.forget(session, stale)
                for item in fresh:
                    repository.mark(session, item.path, item.size_bytes, now_ms)

    def _remove(
        self, due: list[Garbage], user: str, correlation_id: str, now_ms: int
    ) -> list[Garbage]:
        removed = []
        with sweeping(self._data_dir) as alone:
            if not alone:
                log.info("a backup is being made: nothing is removed now")
                return []
            with self._database.transaction() as session:
                # Once more, now that nobody else writes: a rollout may have begun meanwhile.
                need = self._need(session)
                for item in due:
                    room, _, path = item.path.partition("/")
                    if _holds(need, item.path):
                        continue
                    if self._stores[room].remove(path, not_since_ms=item.marked_ms):
                        removed.append(item)
                        _audit(session, item, user, correlation_id, now_ms)
                repository.forget(session, [item.path for item in removed])
        for item in removed:
            log.info("removed", path=item.path, size_bytes=item.size_bytes)
        return removed

    def _sweep_uploads(self, now_ms: int) -> None:
        for view in self._uploads.sweep(now_ms):
            with self._database.transaction() as session:
                note(session, view, "upload.expire", audit.SYSTEM, "", now_ms)
        with self._database.reading() as session:
            kept = {record.upload.folder for record in releases.unfinished(session)}
        self._staging.sweep(kept, before_ms=now_ms - self._grace_ms)


def _holds(need: Need, path: str) -> bool:
    room, _, inner = path.partition("/")
    return need.holds(inner) if room == STORE else inner in need.patches


def _audit(session: Session, item: Garbage, user: str, correlation_id: str, now_ms: int) -> None:
    audit.record(
        session,
        action="store.remove",
        resource_type="file",
        resource_name=item.path,
        outcome="removed",
        user=user,
        correlation_id=correlation_id,
        detail={"size_bytes": item.size_bytes, "marked_ms": item.marked_ms},
        now_ms=now_ms,
        reason="needed by nobody",
    )

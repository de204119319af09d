"""The worker that makes patches in the background, one after the other, and drops old ones.

Decides when the plan is looked at and what a failure means: no patch, and devices download. Which
patches there should be is in :mod:`.plan`, how one is made in :mod:`.child`.
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import structlog

from fleet_contract.manifest import FileRef, artifact_path
from fleet_server.clock import Clock
from fleet_server.database import Database
from fleet_server.deltas import child, service
from fleet_server.deltas.plan import TARGETS, Delta, Release, plan
from fleet_server.deltas.service import DeltaView, Outcome
from fleet_server.deltas.states import DeltaState
from fleet_server.devices import service as devices
from fleet_server.errors import DomainError, Full, NotFound, Unavailable
from fleet_server.object_store import ObjectStore
from fleet_server.releases import lifecycle
from fleet_server.releases import service as releases
from fleet_server.releases.room import room
from fleet_server.releases.store import Store

FOLDER = "deltas"
MOST_SECONDS = 1_800
"""A patch that takes longer is given up; the child's own limit counts only what it computes."""
RETRY_MS = 24 * 3_600_000
"""What failed may have failed for want of memory or time."""
PAUSE_MS = 600_000
"""After a disk that is full or an object store that is away: no patch can be made just then."""
_READ_BYTES = 1024 * 1024
_POLL_S = 0.1

log = structlog.get_logger(__name__)


class _Stopping(Exception):
    """The server stops; the patch is begun anew after the next start."""


class DeltaMaker:
    """Owns the folder of patches and one worker thread.

    Args:
        data_dir: the server's folder.
        database: knows the releases, what runs, and what was made.
        store: where the releases' artifacts are.
        clock: the server's.
        fleet: whose devices count.
        interval_ms: between two looks at the plan; 0: no patches are made.
        objects: where the patches are put, too.
    """

    def __init__(
        self,
        data_dir: Path,
        database: Database,
        store: Store,
        clock: Clock,
        *,
        fleet: str,
        interval_ms: int,
        objects: ObjectStore | None = None,
    ) -> None:
        self._patches = Store(data_dir / FOLDER, objects)
        # Not among the system's temporary files, which may lie in memory: patches may be large.
        self._half_made = data_dir / FOLDER / "half-made"
        self._database = database
        self._store = store
        self._clock = clock
        self._fleet = fleet
        self._interval_s = interval_ms / 1000
        self._known: dict[str, Release] = {}
        self._waiting: list[Delta] = []
        self._resume_ms = 0
        self._counts = dict.fromkeys((*DeltaState, "served", "saved_bytes"), 0)
        self._counting = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deltas", daemon=True)

    def start(self) -> None:
        """Drop what a killed server left half made, and begin, if that is wanted."""
        shutil.rmtree(self._half_made, ignore_errors=True)
        if self._interval_s:
            self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End; a patch that is being made is given up."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def counts(self) -> dict[str, int]:
        """Return what was done since the start, and how many patches wait to be made."""
        with self._counting:
            return {
                **{str(key): n for key, n in self._counts.items()},
                "waiting": len(self._waiting),
            }

    def waiting(self, model: str, version: str) -> list[Delta]:
        """Return the patches to a release that are still to be made."""
        wanted = (model, version)
        return [delta for delta in self._waiting if (delta.model, delta.new_version) == wanted]

    @property
    def patches(self) -> Store:
        """Where the patches lie."""
        return self._patches

    def patch_file(self, delta: DeltaView) -> Path | None:
        """Return where a patch lies, None if it is gone."""
        found = self._patches.find(artifact_path(delta.model, delta.patch_digest or ""))
        return None if found is None else found.path

    def note_served(self, delta: DeltaView) -> None:
        """Count a patch that a device begins to fetch instead of the artifact."""
        with self._counting:
            self._counts["served"] += 1
            self._counts["saved_bytes"] += delta.new_bytes - delta.patch_bytes

    def tick(self) -> int:
        """Look at the plan once, make what is missing and drop what is not in it.

        Returns:
            How many patches were tried.
        """
        planned = self._plan()
        with self._database.reading() as session:
            tried = service.everything(session)
        self._drop(planned, tried)
        done = {(item.old_digest, item.new_digest) for item in tried if self._stays(item)}
        self._waiting = [item for item in planned if (item.old.digest, item.new.digest) not in done]
        count = 0
        while self._waiting and self._clock.monotonic_ms() >= self._resume_ms:
            if self._make(self._waiting[0]):
                self._waiting = self._waiting[1:]
            count += 1
        return count

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.tick()
            except _Stopping:
                return
            except Exception:
                # The worker must outlive whatever one model or the database does to it.
                log.exception("patches cannot be made now")
            self._stopping.wait(self._interval_s)

    def _plan(self) -> list[Delta]:
        with self._database.reading() as session:
            running = devices.running_releases(session, self._fleet)
            newest = releases.newest_digests(session, TARGETS + 1)
            kept = lifecycle.kept_ready(session)
            named = {
                digest
                for found in (newest, kept)
                for digests in found.values()
                for digest in digests
            } | set(running)
            for digest in named - set(self._known):
                with contextlib.suppress(NotFound):
                    view = releases.release_by_digest(session, digest)
                    self._known[digest] = Release(
                        view.model,
                        view.version,
                        view.manifest.release_counter,
                        digest,
                        tuple(view.manifest.variants),
                    )
        self._known = {digest: self._known[digest] for digest in named if digest in self._known}
        planned: list[Delta] = []
        for model, digests in newest.items():
            first = [self._known[digest] for digest in digests]
            others = [item for item in self._known.values() if item.model == model]
            ready = [self._known[digest] for digest in kept.get(model, [])]
            planned += plan(first, others, running, ready)
        return planned

    def _stays(self, delta: DeltaView) -> bool:
        """Return whether there is nothing to be made where this was tried."""
        if delta.state is DeltaState.MADE:
            return self.patch_file(delta) is not None
        age_ms = self._clock.now_ms() - delta.made_ms
        return delta.state is DeltaState.NOT_WORTH or age_ms < RETRY_MS

    def _drop(self, planned: list[Delta], tried: list[DeltaView]) -> None:
        targets = {delta.new.digest for delta in planned}
        gone = [item for item in tried if item.new_digest not in targets]
        if not gone:
            return
        with self._database.transaction() as session:
            service.forget(session, gone, now_ms=self._clock.now_ms())
        for item in gone:
            if item.patch_digest:
                self._patches.remove(artifact_path(item.model, item.patch_digest))

    def _make(self, delta: Delta) -> bool:
        """Return whether it came to an outcome; else there is a pause, whatever the patch."""
        began_ms = self._clock.monotonic_ms()
        try:
            with room():
                outcome = self._encode(delta, began_ms)
        except (Full, Unavailable) as error:
            self._resume_ms = self._clock.monotonic_ms() + PAUSE_MS
            log.warning("no patches for a while", error=str(error), again_in_ms=PAUSE_MS)
            return False
        except (OSError, DomainError) as error:
            outcome = self._failed(began_ms, f"{type(error).__name__}: {error}")
        with self._counting:
            self._counts[outcome.state] += 1
        with self._database.transaction() as session:
            service.record(session, delta, outcome, now_ms=self._clock.now_ms())
        log.info(
            "patch tried",
            model=delta.model,
            old=delta.old_version,
            new=delta.new_version,
            state=outcome.state.value,
            size_bytes=outcome.patch_bytes,
            of_bytes=delta.new.size_bytes,
            took_ms=outcome.encode_ms,
            why=outcome.why,
        )
        return True

    def _encode(self, delta: Delta, began_ms: int) -> Outcome:
        old, new = (self._artifact(delta.model, file) for file in (delta.old, delta.new))
        if old is None or new is None:
            return self._failed(began_ms, "an artifact is not in the store")
        self._half_made.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._half_made) as folder:
            patch = Path(folder) / "patch"
            code, said = self._run_child(old, new, patch, began_ms)
            took_ms = self._clock.monotonic_ms() - began_ms
            if code == child.NOT_WORTH:
                return Outcome(DeltaState.NOT_WORTH, took_ms)
            if code != 0:
                return self._failed(began_ms, f"exit status {code}: {said}")
            file = self._patches.put_artifact(delta.model, _chunks(patch))
        return Outcome(DeltaState.MADE, took_ms, file.digest, file.size_bytes)

    def _run_child(self, old: Path, new: Path, patch: Path, began_ms: int) -> tuple[int, str]:
        command = [sys.executable, "-m", child.__name__, str(old), str(new), str(patch)]
        said = patch.with_name("said")
        with open(said, "wb") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
            )
            try:
                while process.poll() is None:
                    if self._stopping.wait(_POLL_S):
                        raise _Stopping
                    if self._clock.monotonic_ms() - began_ms > MOST_SECONDS * 1000:
                        return -1, "it took too long"
            finally:
                process.kill()
                process.wait()
        with open(said, "rb") as errors:
            last = errors.read(64 * 1024).decode("utf-8", "replace").strip().splitlines()
        return process.returncode, last[-1][:300] if last else ""

    def _artifact(self, model: str, file: FileRef) -> Path | None:
        found = self._store.find(artifact_path(model, file.digest))
        return None if found is None else found.path

    def _failed(self, began_ms: int, why: str) -> Outcome:
        took_ms = self._clock.monotonic_ms() - began_ms
        return Outcome(DeltaState.FAILED, took_ms, why=why)


def _chunks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(_READ_BYTES):
            yield chunk

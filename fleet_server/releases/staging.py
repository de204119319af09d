"""The worker that stages uploads, one after the other, and picks up what a crash left behind.

Decides what is recorded when: each step as it ends, and the outcome in one transaction with its
audit entry. What cannot be recorded, since the database is away, is tried again a little later. An
upload that saw the server stop twice is refused instead of tried for ever, since it may be what
stops it.
"""

import functools
import queue
import shutil
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from fleet_contract.manifest import Manifest, manifest_path
from fleet_server.clock import Clock
from fleet_server.database import Database
from fleet_server.errors import Conflict, DomainError, Full, NotFound
from fleet_server.provenance.statement import Attester
from fleet_server.releases import pipeline, service
from fleet_server.releases.bench import Job
from fleet_server.releases.laboratory.laboratory import Closed, Laboratory
from fleet_server.releases.records import ReleaseRecord
from fleet_server.releases.room import room
from fleet_server.releases.states import Problem, Refusal, Step
from fleet_server.releases.store import Store
from fleet_server.releases.timing import Benches, NoBenches
from fleet_server.releases.uploads import EVALUATION, FILES, Upload, file_of
from fleet_server.trust.catalogue.repository import Catalogue

MOST_ATTEMPTS = 2
RETRY_S = 30.0
"""Until an upload is begun anew whose outcome could not be written down."""
TRY_AGAIN = "Mend that and push the version again."
_END = None

log = structlog.get_logger(__name__)


class _Stopping(Exception):
    """The server stops; what is unfinished goes on after the next start."""


class Staging:
    """Owns the folder of uploads and one worker thread.

    Attributes:
        incoming: where uploads are written, one folder each.
        store: where finished releases lie.
    """

    def __init__(
        self,
        data_dir: Path,
        database: Database,
        store: Store,
        catalogue: Catalogue,
        attester: Attester,
        clock: Clock,
        laboratory: Laboratory,
        required_metadata: Sequence[str] = (),
        benches: Benches | None = None,
    ) -> None:
        self.incoming = data_dir / "incoming"
        self.store = store
        self._database = database
        self._catalogue = catalogue
        self._attester = attester
        self._clock = clock
        self._laboratory = laboratory
        self._required_metadata = required_metadata
        self._benches = benches or NoBenches()
        self._waiting: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._doing: dict[tuple[str, str], str] = {}  # for watchers, not worth a transaction
        self._thread = threading.Thread(target=self._work, name="staging", daemon=True)

    @property
    def stopping(self) -> bool:
        """Whether the server was asked to stop."""
        return self._stopping.is_set()

    def doing(self, model: str, version: str) -> str | None:
        """Return what the step under way tries just now, in words, if it says so."""
        return self._doing.get((model, version))

    def start(self) -> None:
        """Pick up unfinished uploads, sweep what belongs to none, and begin to work."""
        self.incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._database.reading() as session:
            unfinished = service.unfinished(session)
        kept = {record.upload.folder for record in unfinished}
        for folder in self.incoming.iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for record in unfinished:
            self.submit(record.model, record.version)
        self._thread.start()

    def submit(self, model: str, version: str) -> None:
        """Stage a registered upload when those before it are done; returns at once."""
        self._waiting.put((model, version))

    def settle(self) -> None:
        """Go on with releases whose signature has come: they may be rolled out now."""
        with self._database.reading() as session:
            waiting = service.unsigned(session)
        for record in waiting:
            path = manifest_path(record.model, record.digest or "")
            if self._catalogue.vouches(record.model, path):
                with self._database.transaction() as session:
                    service.mark_signed(
                        session, record.model, record.version, now_ms=self._clock.now_ms()
                    )
                log.info("release signed", model=record.model, version=record.version)

    def discard(self, upload: Upload) -> None:
        """Remove the files of an upload: staged, refused, or never registered."""
        shutil.rmtree(self.incoming / upload.folder, ignore_errors=True)

    def sweep(self, kept: Collection[str], *, before_ms: int) -> None:
        """Remove folders of uploads that are not of the kept and were last touched before then."""
        for folder in self.incoming.iterdir():
            changed_ms = folder.stat(follow_symlinks=False).st_mtime_ns // 1_000_000
            if folder.name not in kept and changed_ms < before_ms:
                shutil.rmtree(folder, ignore_errors=True)

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop after the present step; the rest is picked up at the next start."""
        self._stopping.set()
        self._waiting.put(_END)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _work(self) -> None:
        while (item := self._waiting.get()) is not _END:
            model, version = item
            try:
                self._stage(model, version)
            except _Stopping:
                return
            except (NotFound, Conflict):
                log.warning("nothing is left to be staged", model=model, version=version)
            except Exception:
                # The worker must outlive whatever one upload or the database does to it.
                log.exception("staging failed", model=model, version=version, again_in_s=RETRY_S)
                if self._stopping.wait(RETRY_S):
                    return
                self._waiting.put(item)
            finally:
                self._doing.pop(item, None)

    def _stage(self, model: str, version: str) -> None:
        with self._database.transaction() as session:
            record = service.begin(session, model, version, now_ms=self._clock.now_ms())
            previous = service.inherited_schema(session, model)
            production = service.production_release(session, model)
            card = service.newest_card(session, model)
        context = log.bind(model=model, version=version, correlation_id=record.correlation_id)
        try:
            self._check_resumable(record)
            job = self._job(record, previous, production, card)
            with room():
                staged = pipeline.stage(job, lambda step: self._note(model, version, step))
        except Refusal as refusal:
            problem = refusal.problem
        except (_Stopping, Closed):
            with self._database.transaction() as session:
                service.postpone(session, model, version)
            raise _Stopping from None
        except DomainError as error:
            gate = "staging" if isinstance(error, Full) else "sealing"
            problem = Problem(gate, error.code, error.detail, error.advice or TRY_AGAIN)
        except SQLAlchemyError:
            raise  # the database is away, and says nothing of the model
        except Exception as error:
            context.exception("staging broke down")
            problem = Problem(
                "staging",
                "broke_down",
                f"Staging broke down with {type(error).__name__}.",
                "Look into the server's log under the correlation id, mend it and push again.",
            )
        else:
            with self._database.transaction() as session:
                service.mark_staged(
                    session,
                    model,
                    version,
                    digest=staged.sealed.digest,
                    manifest=staged.sealed.manifest,
                    baseline=staged.baseline,
                    statement=staged.sealed.statement,
                    card=staged.sealed.card,
                    vouched=staged.sealed.vouched,
                    now_ms=self._clock.now_ms(),
                )
            context.info(
                "release staged" if staged.sealed.vouched else "release waits for a signature",
                digest=staged.sealed.digest,
            )
            self.discard(record.upload)
            self.settle()
            return
        with self._database.transaction() as session:
            service.mark_refused(session, model, version, problem, now_ms=self._clock.now_ms())
        context.warning("release refused", gate=problem.gate, code=problem.code)
        self.discard(record.upload)

    def _job(
        self,
        record: ReleaseRecord,
        previous: Manifest | None,
        production: Manifest | None,
        card: str | None,
    ) -> Job:
        return Job(
            upload=record.upload,
            counter=record.counter,
            created_ms=record.received_ms,
            previous=previous,
            incoming=self.incoming,
            store=self.store,
            laboratory=self._laboratory,
            vouch=self._catalogue.publish,
            monotonic_ms=self._clock.monotonic_ms,
            attester=self._attester,
            invocation=record.correlation_id,
            production=production,
            required_metadata=self._required_metadata,
            benches=self._benches,
            on_try=functools.partial(self._doing.__setitem__, (record.model, record.version)),
            previous_card=card,
            signer="" if record.origin is None else record.origin.identity,
        )

    def _check_resumable(self, record: ReleaseRecord) -> None:
        if record.attempts > MOST_ATTEMPTS:
            raise Refusal(
                "staging",
                "interrupted",
                f"The server stopped or failed {MOST_ATTEMPTS} times while it staged this release.",
                "See whether this model brings the server down (memory, a crash in its log); "
                "then push the version again.",
            )
        upload = record.upload
        sent = [name for name in FILES if name != EVALUATION or upload.options.evaluated]
        sent += [item.file for item in upload.options.variants if item.file]
        if not all(file_of(self.incoming, upload, name).is_file() for name in sent):
            raise Refusal(
                "staging",
                "interrupted",
                "The server stopped while it staged this release, and the upload is gone.",
                "Push the version again.",
            )

    def _note(self, model: str, version: str, step: Step) -> None:
        with self._database.transaction() as session:
            service.add_step(session, model, version, step, now_ms=self._clock.now_ms())
        self._doing.pop((model, version), None)
        if self.stopping:
            raise _Stopping

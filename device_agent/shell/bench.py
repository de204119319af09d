"""A device on a bench: it waits for bench jobs and times the models that they name.

Decides in which order a job is checked, begun, done and forgotten. Nothing else of the agent runs
meanwhile, and nothing of a job becomes active: its files lie in a folder of their own and are
deleted at its end. Which jobs are believed is the contract's, how two models are timed is in
:mod:`device_agent.shell.races`. Certificate and anchors are kept up as while the agent runs.
"""

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import msgspec

from device_agent.errors import StartFailed, StepFailed
from device_agent.inference.capabilities import capabilities
from device_agent.shell import flash
from device_agent.shell.catalogue import FOLDER, Catalogue
from device_agent.shell.clock import Clock, share_of
from device_agent.shell.download import Wanted, download
from device_agent.shell.http_source import Answer, Canceled, HttpFailure, HttpSource
from device_agent.shell.identity import ANSWER_BYTES, load_identity, problem_of
from device_agent.shell.lock import lock
from device_agent.shell.races import race_one
from device_agent.shell.store import Store
from device_agent.shell.tls import Tls
from device_agent.shell.upkeep import Upkeep
from fleet_contract import codec, limits
from fleet_contract.errors import Reason, Refused
from fleet_contract.messages.bench import BenchPoll, BenchResult, Timed
from fleet_contract.trust.bench import BenchJob, check_bench_job
from fleet_contract.trust.keyset import read_keyset

BENCH_FOLDER = "bench"
_DONE_FILE = "done"
_DONE_BYTES = 32
_DELAYS_MS = (1_000, 5_000, 15_000, 60_000)
"""Pauses after one failure in a row, two, and so on."""
_TELLS = 3
"""How often a result is offered to a server that cannot be reached."""
_KEYSET_REASONS = frozenset({Reason.UNKNOWN_KEY, Reason.UNCONFIRMED_GENERATION})


class Bench:
    """One enrolled device that only times models. ``close`` it when done."""

    def __init__(self, store: Store, clock: Clock, say: Callable[[str], None]) -> None:
        """Take the folder of an enrolled device; nothing is asked yet.

        Args:
            store: the device's folder.
            clock: the machine's.
            say: is told of each job, in a line for a person.

        Raises:
            NotEnrolled: if the device has not joined a fleet.
            StartFailed: if the folder is in use or the identity cannot be used.
        """
        self._identity = identity = load_identity(store)
        self._stopping = threading.Event()
        self._clock, self._say = clock, say
        self._store = store
        self._lock_file = lock(store.folder)
        try:
            self._record = store.load_record() or identity.first_record()
            self._files = Store(store.folder / BENCH_FOLDER, quota_bytes=limits.BENCH_BYTES)
            self._files.sweep(())
            tls = Tls(
                store.folder,
                identity.device,
                now_ms=clock.now_ms,
                time_floor_ms=lambda: self._record.time_floor_ms,
            )
            self._server, artifacts, self._source = (
                HttpSource(url, ticks_ns=clock.ticks_ns, tls=tls.context)
                for url in (
                    *(identity.server, identity.artifacts),
                    f"{identity.server.rstrip('/')}/v1/bench/files",
                )
            )
            self._catalogue = Catalogue(store.folder / FOLDER, identity.server, clock, tls)
        except (OSError, ValueError, Refused) as error:
            os.close(self._lock_file)
            raise StartFailed(f"the identity of this device cannot be used: {error}") from error
        self._upkeep = Upkeep(
            store=store,
            identity=identity,
            tls=tls,
            catalogue=self._catalogue,
            connection=_NoBroker(),
            artifacts=artifacts,
            clock=clock,
            submit=lambda work: work(),
            time_floor_ms=lambda: self._record.time_floor_ms,
            stopping=self._stopping.is_set,
        )
        self._capabilities = capabilities()
        self._refusal = ""

    def stop(self) -> None:
        """Have :meth:`run` end soon; from any thread, or from a signal's handler."""
        self._stopping.set()

    def close(self) -> None:
        """Give the folder free."""
        os.close(self._lock_file)

    def run(self) -> None:
        """Wait for jobs and do them, until told to stop."""
        identity = self._identity
        self._say(f"{identity.device} of fleet {identity.fleet} waits for bench jobs")
        failures, said = 0, ""
        while not self._stopping.is_set():
            self._upkeep.on_time()
            trouble = ""
            try:
                self._ask_and_do()
            except Canceled:
                return
            except HttpFailure as error:
                self._upkeep.notice(error.trouble)
                trouble = f"no jobs for now: {error}"
            except OSError as error:
                trouble = f"{self._store.folder} cannot be written: {error.strerror}"
            if trouble and trouble != said:
                self._say(trouble)
            said, failures = trouble, failures + 1 if trouble or self._refusal else 0
            if failures:
                delay_ms = _DELAYS_MS[min(failures, len(_DELAYS_MS)) - 1]
                pause_ms = delay_ms // 2 + share_of(self._clock, delay_ms // 2)
                self._stopping.wait(pause_ms / 1_000)

    def _ask_and_do(self) -> None:
        """Ask once; do the job if there is one. Raises HttpFailure, Canceled, OSError."""
        data = self._ask()
        self._refusal = ""
        if data is None:
            return
        try:
            job = self._check(data)
        except Refused as refused:
            # The server learns of it with the next question: there is no job to answer for.
            self._refusal = f"{refused}"[:300]
            self._say(f"refused a job: {refused}")
            return
        # Before anything of it is fetched: it is never begun a second time.
        flash.write_file(self._files.folder / _DONE_FILE, b"%d" % job.number)
        size_bytes = sum(file.size_bytes for file in job.files().values())
        self._say(
            f"job {job.number}: {len(job.candidates)} candidates, {size_bytes / 1024**2:.1f} MiB"
        )
        try:
            result = self._do(job)
        except Canceled:
            # Whoever waits for the figures need not wait for the job's end.
            result = BenchResult([], Reason.CANCELED, "the bench was stopped")
        finally:
            self._files.sweep(())
        self._say(f"job {job.number}: {_summary(result)}")
        self._tell(job, result)

    def _ask(self) -> bytes | None:
        poll = BenchPoll(self._capabilities, self._done(), self._refusal)
        with self._post("v1/bench/poll", poll, self._stopping.is_set) as answer:
            body = answer.read(max(limits.ENVELOPE_BYTES, ANSWER_BYTES))
        if answer.status == 204:
            return None
        if answer.status != 200:
            raise HttpFailure(problem_of(answer.status, body))
        return body

    def _check(self, data: bytes) -> BenchJob:
        """Check a job; one that an unknown key signed once more after a look at the keyset."""
        try:
            return self._believe(data)
        except Refused as refused:
            if refused.reason not in _KEYSET_REASONS:
                raise
            self._refresh_keyset()
        return self._believe(data)

    def _believe(self, data: bytes) -> BenchJob:
        record = self._record
        job = check_bench_job(
            data,
            keyset=record.keyset,
            fleet=record.fleet,
            device=record.device,
            done=self._done(),
            now_ms=max(self._clock.now_ms(), record.time_floor_ms),
        )
        self._keep(time_floor_ms=max(record.time_floor_ms, job.issued_ms))
        return job

    def _refresh_keyset(self) -> None:
        record = self._record
        try:
            document = self._catalogue.keyset(
                time_floor_ms=record.time_floor_ms, canceled=self._stopping.is_set
            )
        except StepFailed as failed:
            raise Refused(Reason.UNKNOWN_KEY, f"no fresh keyset: {failed}") from failed
        self._keep(keyset=read_keyset(document, fleet=record.fleet, held=record.keyset))

    def _keep(self, **changes: object) -> None:
        record = msgspec.structs.replace(self._record, **changes)
        if record != self._record:
            self._store.save_record(record)
            self._record = record

    def _do(self, job: BenchJob) -> BenchResult:
        try:
            for file in job.files().values():
                wanted = Wanted(file.digest, file.size_bytes, file.digest, {"sha256": file.digest})
                download(self._source, self._files, wanted, self._stopping.is_set)
        except StepFailed as failed:
            return BenchResult([], failed.reason, failed.detail[:300])
        folder = self._files.artifact(job.rows.digest).parent
        timed: list[Timed] = []
        for candidate in job.candidates:
            if max(self._clock.now_ms(), self._record.time_floor_ms) >= job.expires_ms:
                return BenchResult([], Reason.EXPIRED, f"after {len(timed)} candidates")
            timed.append(race_one(job, candidate, folder, self._stopping.is_set))
        return BenchResult(timed)

    def _tell(self, job: BenchJob, result: BenchResult) -> None:
        for turn in range(_TELLS):
            try:
                path = f"v1/bench/jobs/{job.number}/result"
                with self._post(path, result, lambda: False) as answer:
                    body = answer.read(ANSWER_BYTES)
                if answer.status >= 400:
                    self._say(f"job {job.number}: {problem_of(answer.status, body)}")
                return
            except HttpFailure as error:
                if turn == _TELLS - 1 or self._stopping.is_set():
                    raise
                self._upkeep.notice(error.trouble)
                self._stopping.wait(_DELAYS_MS[turn] / 1_000)

    def _post(
        self, path: str, message: msgspec.Struct, canceled: Callable[[], bool]
    ) -> AbstractContextManager[Answer]:
        return self._server.ask(
            "POST",
            path,
            size_bytes=limits.ENVELOPE_BYTES,
            headers={"Content-Type": "application/json"},
            body=codec.encode_json(message),
            canceled=canceled,
        )

    def _done(self) -> int:
        data = flash.read_file(self._files.folder / _DONE_FILE, limit_bytes=_DONE_BYTES)
        return int(data) if data is not None and data.isdigit() else 0


class _NoBroker:
    """Stands where the agent has its connection to the broker: a bench has none."""

    def hurry(self) -> None:
        """There is nothing to connect."""

    def move_to(self, url: str) -> None:
        """The address is kept with the identity, for the agent."""


def _summary(result: BenchResult) -> str:
    if result.reason is not None:
        return f"not done: {result.reason.value}: {result.detail}"
    failed = [item for item in result.timed if item.reason is not None]
    words = f"{len(result.timed) - len(failed)} timed"
    for item in failed:
        words += f"; {item.digest[:12]} could not be run: {item.reason}: {item.detail}"
    return words

"""Has a heat of candidates timed by a bench device: chooses it, signs the job, reads the result.

Decides how long a device gets, and which of its answers count. The device is believed about its own
time and about nothing else: figures are of candidates that were in the job, or they are none.
"""

import shutil
from collections.abc import Set
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from fleet_contract import limits
from fleet_contract.manifest import Runtime
from fleet_contract.messages.bench import BenchResult, Timed
from fleet_contract.trust.bench import BenchJob
from fleet_server.benches import choosing, parcel, service
from fleet_server.benches.desk import Desk, Order
from fleet_server.benches.parcel import Parcel
from fleet_server.clock import Clock
from fleet_server.database import Database
from fleet_server.errors import NotFound
from fleet_server.releases.laboratory.tasks import Raced
from fleet_server.releases.timing import RACE_MS, Choice, Heat, Target, Unavailable
from fleet_server.trust.keyring import Keyring

ALLOWANCE_MS = 60_000
"""Beside the work: until the device has asked, and for its start."""
LOAD_MS = 15_000
"""For each candidate: a process is started and loads two models."""
RACES = 4
"""How many times the time of a race a slow model may take."""
LEAST_RATE = 64
"""Bytes a millisecond that a bench device should fetch: about half a megabit a second."""


class BenchStopwatch:
    """The bench devices of one fleet, as staging asks them."""

    def __init__(
        self,
        folder: Path,
        fleet: str,
        database: Database,
        keyring: Keyring,
        clock: Clock,
        desk: Desk,
        *,
        allowance_ms: int = ALLOWANCE_MS,
    ) -> None:
        """Take what jobs are made of; ``folder`` is for their files and is emptied."""
        self._folder = folder
        self._fleet = fleet
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._desk = desk
        self._allowance_ms = allowance_ms
        shutil.rmtree(folder, ignore_errors=True)  # of a server that was killed

    def choose(self, target: Target, runtimes: Set[Runtime]) -> Choice:
        """Return a device that is there, is of the target's hardware and has these runtimes."""
        with self._database.reading() as session:
            seats = service.seats(session, self._fleet, now_ms=self._clock.now_ms())
        return choosing.choose(seats, target, runtimes)

    def time(self, device: str, heat: Heat, release: str) -> list[Raced | str]:
        """Return for each candidate its figures, or why it could not be run there.

        Raises:
            Closed: if the server stops meanwhile. Unavailable: if the device gives no figures.
        """
        packed = parcel.pack(heat, self._folder / self._clock.random_bytes(8).hex())
        try:
            result = self._have_done(device, heat, packed, release)
        finally:
            packed.remove()
        return _figures(result, packed)

    def _have_done(self, device: str, heat: Heat, packed: Parcel, release: str) -> BenchResult:
        now_ms = self._clock.now_ms()
        each_ms = LOAD_MS + RACES * RACE_MS
        timeout_ms = (
            self._allowance_ms + len(packed.candidates) * each_ms + packed.size_bytes // LEAST_RATE
        )
        try:
            with self._database.transaction() as session:
                number = service.next_number(session, self._fleet, device, now_ms=now_ms)
        except (NotFound, SQLAlchemyError) as error:
            raise Unavailable(f"it cannot be given a job ({type(error).__name__})") from error
        job = BenchJob(
            fleet=self._fleet,
            device=device,
            number=number,
            generation=self._keyring.generation,
            issued_ms=now_ms,
            expires_ms=now_ms + timeout_ms,
            rival=packed.rival,
            candidates=packed.candidates,
            rows=packed.rows,
            inputs=list(heat.inputs),
            outputs=list(heat.outputs),
            most_ms=RACE_MS,
        )
        envelope = self._keyring.sign_bench_job(job)
        if len(envelope) > limits.ENVELOPE_BYTES:
            raise Unavailable("the model has too many inputs and outputs for a job")
        files = {digest: packed.folder / digest for digest in job.files()}
        return self._desk.wait(Order(device, number, release, envelope, files), timeout_ms)


def _figures(result: BenchResult, packed: Parcel) -> list[Raced | str]:
    if result.reason is not None:
        raise Unavailable(f"it did not do the job ({result.reason.value}: {result.detail[:200]})")
    said = {item.digest: item for item in result.timed}
    return [_read(said.get(entrant.artifact.digest)) for entrant in packed.candidates]


def _read(timed: Timed | None) -> Raced | str:
    if timed is None:
        return "the device said nothing of it"
    if timed.reason is not None:
        return f"{timed.reason.value} on the bench device: {timed.detail}"[:200]
    if not timed.rounds or timed.candidate_us <= 0 or timed.rival_us <= 0:
        return "the device gave figures that make no sense"
    return Raced(timed.candidate_us, timed.rival_us, timed.rounds)

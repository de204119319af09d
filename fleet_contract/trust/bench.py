"""The bench job: which models a device on a bench times for the server that stages them.

Decides the form of a job and the ordered checks on it. Unlike a directive it is for one device, for
a few minutes, and changes nothing on it: what it names is timed and deleted again. No device runs a
model that nobody signed for, so a job is signed by a director key as a directive is. How models are
timed is the device's business; what the figures mean is the server's.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract import codec, limits
from fleet_contract.counts import Count
from fleet_contract.errors import Reason, Refused
from fleet_contract.manifest import FileRef, Runtime, TensorSpec
from fleet_contract.names import Identity
from fleet_contract.trust import checks
from fleet_contract.trust.keyset import Keyset

BENCH_JOB_TYPE = "application/vnd.edgefleet.bench-job.v1+json"


class Entrant(msgspec.Struct, frozen=True):
    """A model that is timed, and what executes it."""

    runtime: Runtime
    artifact: FileRef


class BenchJob(msgspec.Struct, frozen=True):
    """Models to be timed by one device, each in turns with the same rival.

    Times are in milliseconds since 1970 (UTC). ``number`` grows from job to job of a device.
    ``rows`` is MessagePack of a list of :class:`~fleet_contract.manifest.TensorData`: the rows on
    which all of them run, one at a time. All take ``inputs`` and return ``outputs``. ``most_ms`` is
    how long one pair is timed.
    """

    fleet: Identity
    device: Identity
    number: Count
    generation: Count
    issued_ms: Count
    expires_ms: Count
    rival: Entrant
    candidates: Annotated[list[Entrant], Meta(min_length=1, max_length=limits.BENCH_CANDIDATES)]
    rows: FileRef
    inputs: Annotated[list[TensorSpec], Meta(min_length=1, max_length=64)]
    outputs: Annotated[list[TensorSpec], Meta(min_length=1, max_length=64)]
    most_ms: Annotated[int, Meta(ge=1, le=limits.BENCH_RACE_MS)]

    def files(self) -> dict[str, FileRef]:
        """Return every file of the job by its digest."""
        entrants = [self.rival, *self.candidates]
        return {file.digest: file for file in (self.rows, *(item.artifact for item in entrants))}


def check_bench_job(
    data: bytes, *, keyset: Keyset, fleet: str, device: str, done: int, now_ms: int
) -> BenchJob:
    """Check a job as it came.

    The checks, in this order: size (1), key id (2), signature (3), audience (4), generation (5),
    number (6), expiry (7), size of its files (8). The device then persists the number (9), and only
    then fetches anything (10); those two are the caller's.

    Args:
        data: the envelope.
        keyset: the keys and the generation believed.
        fleet: this device's fleet.
        device: this device.
        done: the highest number of a job that this device began, 0 for none.
        now_ms: the device's trusted time, milliseconds since 1970.

    Raises:
        Refused: with the reason of the first check that failed.
    """
    # 1. Size.  2. Key id.  3. Signature.
    payload = checks.unseal(data, BENCH_JOB_TYPE, keyset)
    job = codec.decode_json(payload, BenchJob, limit_bytes=limits.ENVELOPE_BYTES)
    # 4. Audience.
    if (job.fleet, job.device) != (fleet, device):
        raise Refused(Reason.WRONG_AUDIENCE, f"for {job.fleet}/{job.device}, not {device}")
    # 5. Generation.
    checks.check_generation(job.generation, keyset)
    # 6. Number: no job twice, and none from before the last.
    if job.number <= done:
        raise Refused(Reason.OLD_EPOCH, f"job {job.number}, job {done} was begun")
    # 7. Expiry.
    if now_ms >= job.expires_ms:
        raise Refused(Reason.EXPIRED, f"expired {now_ms - job.expires_ms} ms ago")
    # 8. What it would fetch.
    size_bytes = sum(file.size_bytes for file in job.files().values())
    if size_bytes > limits.BENCH_BYTES or job.rows.size_bytes > limits.BENCH_ROWS_BYTES:
        raise Refused(
            Reason.TOO_LARGE,
            f"its files have {size_bytes} bytes, {job.rows.size_bytes} of them rows; "
            f"{limits.BENCH_BYTES} and {limits.BENCH_ROWS_BYTES} are the bounds",
        )
    return job

"""What a bench device says over HTTP: that it waits, and what came of a job.

A bench device asks again and again, and that is how the server knows that it is there. Figures are
of the device's own processor; which of them decide anything is the server's matter.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract import codec, limits
from fleet_contract.counts import Count
from fleet_contract.errors import Reason
from fleet_contract.manifest import Capabilities
from fleet_contract.names import Digest

Microseconds = Annotated[float, Meta(ge=0, le=1e12)]
Detail = Annotated[str, Meta(max_length=300)]


class BenchPoll(msgspec.Struct, frozen=True):
    """A device is free: what it can run, and the highest number of a job that it began.

    ``refusal`` says why it did not take the job that came last, and is empty otherwise.
    """

    capabilities: Capabilities
    done: Count
    refusal: Detail = ""


class Timed(msgspec.Struct, frozen=True):
    """One candidate of a job.

    Medians over ``rounds`` single rows of each, in microseconds: of the processor's time, and of
    the time that passed. If it could not be run, ``reason`` says why and the figures are 0.
    """

    digest: Digest
    reason: Reason | None = None
    detail: Detail = ""
    candidate_us: Microseconds = 0.0
    rival_us: Microseconds = 0.0
    candidate_wall_us: Microseconds = 0.0
    rival_wall_us: Microseconds = 0.0
    rounds: Count = 0


class BenchResult(msgspec.Struct, frozen=True):
    """What came of one job: a line for each candidate, or why the job was not done at all."""

    timed: Annotated[list[Timed], Meta(max_length=limits.BENCH_CANDIDATES)]
    reason: Reason | None = None
    detail: Detail = ""


def read_poll(data: bytes) -> BenchPoll:
    """Read a poll (JSON). Raises Refused: ``too_large`` or ``malformed``."""
    return codec.decode_json(data, BenchPoll, limit_bytes=limits.STATUS_BYTES)


def read_result(data: bytes) -> BenchResult:
    """Read a result (JSON). Raises Refused: ``too_large`` or ``malformed``."""
    return codec.decode_json(data, BenchResult, limit_bytes=limits.STATUS_BYTES)

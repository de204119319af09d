"""The process in which a bench device times two models: whatever they do harms nobody else.

Run as ``python -m device_agent.shell.race_child``, once for each candidate of a job: it reads one
request, limits itself, loads both models from bytes that it has hashed, and writes one answer. An
end without an answer is a crash. Who asks, and how long it waits, is in
:mod:`device_agent.shell.races`.
"""

import os
import signal
import sys
from pathlib import Path

import msgspec

from device_agent.errors import InferenceFailed, InputRejected, StepFailed
from device_agent.inference.artifact_file import read_verified
from device_agent.inference.confinement import confine
from device_agent.inference.golden import read_rows
from device_agent.inference.probe_child import read_frame
from device_agent.inference.racing import race
from device_agent.inference.runtimes import session_of
from device_agent.inference.session import ModelSession
from device_agent.shell.clock import SystemClock
from fleet_contract.errors import Reason
from fleet_contract.manifest import FileRef, TensorSpec
from fleet_contract.messages.bench import Timed
from fleet_contract.trust.bench import Entrant

ANSWER_BYTES = 4096
"""Of one answer. So much is written into a pipe, and read from it, at once (POSIX's PIPE_BUF)."""


class RaceRequest(msgspec.Struct, frozen=True):
    """A candidate and its rival; files lie in ``folder`` under their digests."""

    folder: str
    candidate: Entrant
    rival: Entrant
    rows: FileRef
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    most_ms: int
    memory_bytes: int
    timeout_s: float


def answer(request: RaceRequest) -> Timed:
    """Time the two. Harmless only in a limited process."""
    digest, clock = request.candidate.artifact.digest, SystemClock()
    try:
        found = race(
            _load(request, request.candidate),
            _load(request, request.rival),
            read_rows(read_verified(Path(request.folder, request.rows.digest), request.rows)),
            most_ms=request.most_ms,
            cpu_ns=clock.cpu_ns,
            ticks_ns=clock.ticks_ns,
        )
    except StepFailed as failed:
        return Timed(digest, failed.reason, failed.detail[:300])
    except (InputRejected, InferenceFailed) as error:
        return Timed(digest, Reason.BROKEN_MODEL, f"it does not run: {error}"[:300])
    except MemoryError:
        return Timed(digest, Reason.BROKEN_MODEL, "it asks for more memory than it was granted")
    return Timed(digest, None, "", *found.cpu_us, *found.wall_us, found.rounds)


def _load(request: RaceRequest, entrant: Entrant) -> ModelSession:
    file = entrant.artifact
    data = read_verified(Path(request.folder, file.digest), file)
    return session_of(entrant.runtime, data, request.inputs, request.outputs)


def main() -> None:
    """Answer the one request on standard input."""
    # An interrupt at the terminal is the agent's to handle; it ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = read_frame(sys.stdin.buffer, RaceRequest)
    if request is None:
        return
    writer = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)  # what a library prints is no answer
    confine(request.memory_bytes, request.timeout_s)
    os.write(writer, msgspec.msgpack.encode(answer(request)))


if __name__ == "__main__":
    main()

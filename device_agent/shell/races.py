"""Has the candidates of a bench job timed, each in a process of its own.

Decides how much memory and time such a process gets, and what its end means for the candidate. What
it does is in :mod:`device_agent.shell.race_child`.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from device_agent.inference.confinement import MEMORY_BYTES, environment
from device_agent.inference.probe_child import write_frame
from device_agent.shell.http_source import Canceled
from device_agent.shell.race_child import ANSWER_BYTES, RaceRequest
from fleet_contract import codec
from fleet_contract.errors import Reason, Refused
from fleet_contract.messages.bench import Timed
from fleet_contract.trust.bench import BenchJob, Entrant

LOAD_S = 30.0
"""For the interpreter, the runtime and two models, beside the time of the race itself."""
_SLICES = 4
"""How many times the time of the race a slow model may take: it has to run five times."""
_COPIES = 4
"""A runtime holds a model more than once while it loads it."""
_WAIT_MS = 500.0


def race_one(
    job: BenchJob,
    candidate: Entrant,
    folder: Path,
    canceled: Callable[[], bool],
    *,
    load_s: float = LOAD_S,
) -> Timed:
    """Return the figures of one candidate, or why it could not be run.

    Args:
        job: whose rival and rows it is timed with.
        candidate: one of the job's.
        folder: where the job's files lie under their digests.
        canceled: asked now and then.
        load_s: what the process may take beside the race, in seconds.

    Raises:
        Canceled: if nobody waits for it any more.
    """
    sizes = candidate.artifact.size_bytes + job.rival.artifact.size_bytes + job.rows.size_bytes
    timeout_s = load_s + _SLICES * job.most_ms / 1_000
    request = RaceRequest(
        str(folder.absolute()),
        candidate,
        job.rival,
        job.rows,
        job.inputs,
        job.outputs,
        job.most_ms,
        max(MEMORY_BYTES, _COPIES * sizes),
        timeout_s,
    )
    digest = candidate.artifact.digest
    try:
        data, status = _run(request, canceled)
    except OSError as error:
        return Timed(digest, Reason.PROBE_CRASHED, f"no process to time it in: {error.strerror}")
    if data is None or status == -signal.SIGXCPU:
        return Timed(digest, Reason.PROBE_TIMED_OUT, f"not timed after {timeout_s:g} s")
    try:
        timed = codec.decode_msgpack(data, Timed, limit_bytes=ANSWER_BYTES)
    except Refused:
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return Timed(digest, Reason.PROBE_CRASHED, f"the process that timed it ended with {how}")
    # The process may say what it likes of this candidate, and nothing of another.
    return msgspec.structs.replace(timed, digest=digest)


def _run(request: RaceRequest, canceled: Callable[[], bool]) -> tuple[bytes | None, int]:
    """Return what the process wrote (None if that took too long) and its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "device_agent.shell.race_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=environment(),
    )
    requests, answers = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)
    try:
        with contextlib.suppress(BrokenPipeError):  # gone already; its status says how
            write_frame(requests, request)
        waiter = select.poll()
        waiter.register(answers, select.POLLIN)
        for _ in range(int(request.timeout_s * 1_000 / _WAIT_MS) + 1):
            if canceled():
                raise Canceled
            if waiter.poll(_WAIT_MS):
                data = os.read(answers.fileno(), ANSWER_BYTES)
                if not data:
                    # The end of the pipe: the process is ending by itself, which says why.
                    return data, process.wait(_WAIT_MS / 1_000)
                return data, 0
        return None, 0
    except subprocess.TimeoutExpired:
        return b"", 1
    finally:
        process.kill()
        with contextlib.suppress(OSError):  # unsent bytes to a process that is gone
            requests.close()
        answers.close()
        process.wait()

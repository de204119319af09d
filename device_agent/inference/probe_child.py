"""The process that tries a new artifact, so that a hostile one harms nobody else.

Run as ``python -m device_agent.inference.probe_child``: it imports the runtime once, then forks
for each request, so that a probe costs a fork and not an interpreter. The fork limits itself, reads
the files, runs the golden vectors and writes its verdict into a pipe; a fork that ends without one
has crashed. What a verdict means for the release is decided elsewhere.

Requests and answers are MessagePack behind a length of four bytes, on standard input and output.
"""

import os
import select
import signal
import struct
import sys
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from device_agent.errors import InferenceFailed, InputRejected, StepFailed
from device_agent.inference.artifact_file import read_verified
from device_agent.inference.confinement import confine
from device_agent.inference.golden import class_scores, difference, read_golden
from device_agent.inference.runtimes import Runtimes
from fleet_contract import codec
from fleet_contract.errors import Reason
from fleet_contract.manifest import Manifest, Variant

FRAME_BYTES = 8 * 1024 * 1024
_VERDICT_BYTES = 4096
_NICE = 10
"""Trying a model must not slow down the one that runs."""


class ProbeRequest(msgspec.Struct, frozen=True):
    """One artifact to try. ``memory_bytes`` is what the fork may allocate beyond what it starts
    with, ``timeout_s`` what it may take, on the wall and of the processor.
    """

    path: str
    golden_path: str
    manifest: Manifest
    variant: Variant
    memory_bytes: int
    timeout_s: float


class Verdict(msgspec.Struct, frozen=True):
    """``reason`` is None if the release may be built."""

    reason: Reason | None
    detail: str


RequestT = TypeVar("RequestT")


def write_frame(stream: BinaryIO, value: object) -> None:
    """Write one value with its length in front."""
    data = msgspec.msgpack.encode(value)
    stream.write(struct.pack(">I", len(data)) + data)
    stream.flush()


def read_frame(stream: BinaryIO, kind: type[RequestT]) -> RequestT | None:
    """Return the next value, None at the end of the stream or where it makes no sense."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack(">I", head)
    if size > FRAME_BYTES:
        return None
    data = stream.read(size)
    if len(data) < size:
        return None
    try:
        return msgspec.msgpack.decode(data, type=codec.prepared(kind))
    except msgspec.MsgspecError:
        return None


def examine(request: ProbeRequest) -> Verdict:
    """Load the artifact, run its golden vectors, compare. Harmless only in a limited process."""
    try:
        golden = read_golden(read_verified(Path(request.golden_path), request.manifest.golden.file))
        session = Runtimes().load(Path(request.path), request.manifest, request.variant)
        session.check(golden.inputs)
        outputs = session.run(golden.inputs)
    except StepFailed as failed:
        return Verdict(failed.reason, failed.detail)
    except InputRejected as rejected:
        return Verdict(Reason.GOLDEN_MISMATCH, f"its golden inputs do not fit: {rejected}")
    except InferenceFailed as failed:
        return Verdict(Reason.BROKEN_MODEL, f"it failed on its golden inputs: {failed}")
    except MemoryError:
        return Verdict(Reason.BROKEN_MODEL, "it asks for more memory than it was granted")
    scores = class_scores(request.manifest.features)
    gap = difference(golden, outputs, request.manifest.golden, scores)
    return Verdict(Reason.GOLDEN_MISMATCH, gap) if gap else Verdict(None, "")


def _answer(request: ProbeRequest) -> Verdict:
    """Fork, wait for the verdict, and see to it that the fork is gone."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, 0)  # requests and answers are the helper's alone
            os.dup2(nowhere, 1)
            confine(request.memory_bytes, request.timeout_s)
            os.write(writer, msgspec.msgpack.encode(examine(request)))
        finally:
            os._exit(0)
    os.close(writer)
    try:
        waiter = select.poll()
        waiter.register(reader, select.POLLIN)
        ready = waiter.poll(request.timeout_s * 1000)
        data = os.read(reader, _VERDICT_BYTES) if ready else b""
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)  # a zombie until waited for, so the number is still its own
        _, status = os.waitpid(child, 0)
    if not ready or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return Verdict(Reason.PROBE_TIMED_OUT, f"no verdict after {request.timeout_s:g} s")
    try:
        return msgspec.msgpack.decode(data, type=codec.prepared(Verdict))
    except msgspec.MsgspecError:
        pass
    how = (
        signal.Signals(os.WTERMSIG(status)).name
        if os.WIFSIGNALED(status)
        else f"exit status {os.WEXITSTATUS(status)}"
    )
    return Verdict(Reason.PROBE_CRASHED, f"the process that tried it ended with {how}")


def main() -> None:
    """Serve requests until standard input ends, which it does with the agent."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    os.nice(_NICE)
    # An interrupt at the terminal is the agent's to handle; it closes our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (request := read_frame(requests, ProbeRequest)) is not None:
        write_frame(answers, _answer(request))


if __name__ == "__main__":
    main()

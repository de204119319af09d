"""The process beside the server that forks for every task, so that a task costs no start.

Run as ``python -m fleet_server.releases.laboratory.forkserver``: it imports the tools once. Decides
the limits of a fork: memory, time, files and network. What a task does is in
:mod:`fleet_server.releases.laboratory.work`, what its failure means in
:mod:`fleet_server.releases.laboratory.laboratory`. It opens no model itself.

Requests and answers are MessagePack behind a length of four bytes, on standard input and output.
"""

import ctypes
import os
import resource
import select
import signal
import struct
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from fleet_contract import codec
from fleet_server.clock import SystemClock
from fleet_server.releases.laboratory import work
from fleet_server.releases.laboratory.confinement import confine
from fleet_server.releases.laboratory.tasks import Answer, Ending, Request

FRAME_BYTES = 16 * 1024**2
"""A large model's list of layers fits many times."""

_OPEN_FILES = 64
_NICE = 5
"""Staging must not slow down the server that runs the fleet."""
_NEW_USERS, _NEW_NETWORK = 0x10000000, 0x40000000
_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG."""

FrameT = TypeVar("FrameT")


def write_frame(stream: BinaryIO, value: object) -> None:
    """Write one value with its length in front."""
    data = msgspec.msgpack.encode(value)
    stream.write(struct.pack(">I", len(data)) + data)
    stream.flush()


def read_frame(stream: BinaryIO, kind: type[FrameT]) -> FrameT | None:
    """Return the next value, None at the end of the stream or where it makes no sense."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack(">I", head)
    if size > FRAME_BYTES:
        return None
    data = stream.read(size)
    try:
        return msgspec.msgpack.decode(data, type=codec.prepared(kind))
    except msgspec.MsgspecError:
        return None


def _limit(request: Request, parent: int) -> None:
    """Take from this process what a model does not need."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    own = pages * resource.getpagesize()
    may = request.allowance
    for what, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, may.file_bytes),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_AS, own + may.memory_bytes),
    ):
        _, most = resource.getrlimit(what)  # which the system may have set lower
        bound = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(what, (bound, bound))
    # Ended by SIGXCPU, which tells it from other ends; the hard limit is for who ignores that.
    resource.setrlimit(resource.RLIMIT_CPU, (may.cpu_s, may.cpu_s + 2))
    # A network without interfaces, and no files but these: where the kernel grants it to anyone.
    libc = ctypes.CDLL(None)
    libc.unshare(_NEW_USERS | _NEW_NETWORK)
    # The server ends this process' parent when it stops, and nobody else would end this one. After
    # the new users: who changes them loses it.
    libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it ended before
    confine(Path(request.folder))


def _answer(request: Request) -> Answer:
    """Fork, wait for the result, and see to it that the fork is gone."""
    reader, writer = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.setpgid(0, 0)  # whatever it starts ends with it
            nowhere = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):  # requests and answers are the helper's alone
                os.dup2(nowhere, number)
            os.chdir(request.folder)
            tempfile.tempdir = request.folder  # the tools keep files in between there
            _limit(request, parent)
            with os.fdopen(writer, "wb") as stream:
                stream.write(msgspec.msgpack.encode(work.do(request.task)))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        data = _read(reader, request.allowance.wall_s)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)  # a zombie until waited for, so the number is still its own
        with suppress(ProcessLookupError):  # it ended before it had a group
            os.killpg(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    peak_bytes = usage.ru_maxrss * 1024
    by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if data is None or by == signal.SIGXCPU:
        took = (
            f"no result within {request.allowance.wall_s:g} s, or {request.allowance.cpu_s} s of "
            "the processor"
        )
        return Answer(Ending.TIMED_OUT, took, b"", peak_bytes)
    if data:
        return Answer(Ending.DONE, "", data, peak_bytes)
    how = signal.Signals(by).name if by else f"exit status {os.WEXITSTATUS(status)}"
    return Answer(Ending.CRASHED, how, b"", peak_bytes)


def _read(reader: int, wall_s: float) -> bytes | None:
    """Return what the fork wrote until it closed, None if it took too long or wrote too much.

    It ends with the server, too: that closes standard input, and asks nothing meanwhile.
    """
    parts: list[bytes] = []
    waiter = select.poll()
    waiter.register(reader, select.POLLIN)
    waiter.register(sys.stdin.fileno(), 0)  # nothing but its end is told of
    clock = SystemClock()
    end_ms = clock.monotonic_ms() + round(wall_s * 1000)
    while sum(map(len, parts)) <= FRAME_BYTES:
        ready = dict(waiter.poll(max(0, end_ms - clock.monotonic_ms())))
        if reader not in ready:
            return None
        part = os.read(reader, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)
    return None


def main() -> None:
    """Serve requests until standard input ends, which it does with the server."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    os.nice(_NICE)
    # An interrupt at the terminal is the server's to handle; it closes our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (request := read_frame(requests, Request)) is not None:
        write_frame(answers, _answer(request))


if __name__ == "__main__":
    main()

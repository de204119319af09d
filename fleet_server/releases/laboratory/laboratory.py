"""Asks for tasks and believes no answer: the server's side of the laboratory.

Decides what a child's end means for the release, and turns what it wrote into arrays whose types,
shapes and sizes are those that were asked for. One helper process serves one task at a time; it is
started when it is first needed, and again if it is gone.
"""

import contextlib
import math
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import msgspec
import numpy as np

from fleet_contract import codec
from fleet_contract.manifest import TensorSpec
from fleet_server.releases import limits
from fleet_server.releases.examples import Rows, row_bytes
from fleet_server.releases.laboratory.forkserver import read_frame, write_frame
from fleet_server.releases.laboratory.tasks import (
    Allowance,
    Answer,
    Ending,
    Ran,
    RawTensor,
    Refused,
    Request,
    Result,
    Run,
    Task,
)
from fleet_server.releases.pieces import PIECE_BYTES
from fleet_server.releases.shelf import Shelf
from fleet_server.releases.states import Refusal

ALLOWANCE = Allowance(
    memory_bytes=limits.CHILD_MEMORY_BYTES,
    cpu_s=limits.CHILD_CPU_S,
    wall_s=limits.CHILD_WALL_S,
    file_bytes=limits.CHILD_FILE_BYTES,
)
_GRACE_S = 30.0
"""How much longer than the task the helper may take: it may have to start first."""

_RESULT: Any = codec.prepared(cast(Any, Result))

ResultT = TypeVar("ResultT")


class Closed(Exception):
    """The server stops: a task has no result, and that says nothing about the model."""


class Laboratory:
    """Owns the helper process. Safe to use from several threads; they wait for each other.

    Attributes:
        peak_bytes: the most memory that the child of the last task held.
    """

    def __init__(self, allowance: Allowance = ALLOWANCE) -> None:
        self._allowance = allowance
        self._helper: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self.peak_bytes = 0

    def do(
        self,
        task: Task,
        kind: type[ResultT],
        *,
        gate: str,
        folder: Path,
        wall_s: float | None = None,
    ) -> ResultT:
        """Have a task done, and return its result.

        Args:
            task: what to do; its paths lie in ``folder``.
            kind: of the result.
            gate: the step of staging that asks, for the message.
            folder: the only one that the child may write to.
            wall_s: how long it may take, if that is less than usual.

        Raises:
            Closed: if the server stops meanwhile.
            Refusal: the child's own; ``child_crashed`` or ``child_timed_out`` if it had no result.
        """
        allowance = self._allowance
        if wall_s is not None:
            allowance = msgspec.structs.replace(allowance, wall_s=min(wall_s, allowance.wall_s))
        request = Request(task, str(folder), allowance)
        with self._lock:
            answer = self._ask(request)
            if self._closed.is_set():
                self._stop()
                raise Closed
            self.peak_bytes = answer.peak_bytes
        if answer.ending is not Ending.DONE:
            raise self._ended(answer, gate, allowance.wall_s)
        try:
            result: Result | None = msgspec.msgpack.decode(answer.result, type=_RESULT)
        except msgspec.MsgspecError:
            result = None
        if isinstance(result, Refused):
            problem = result.problem
            # Its words may be the model's, and end in a terminal.
            raise Refusal(
                _plain(problem.gate)[:40],
                _plain(problem.code)[:40],
                _plain(problem.detail)[:1000],
                _plain(problem.advice)[:1000],
                figure=problem.figure,
                bound=problem.bound,
            )
        if not isinstance(result, kind):
            wrong = Answer(Ending.CRASHED, "a result that makes no sense", b"", 0)
            raise self._ended(wrong, gate, allowance.wall_s)
        return result

    def run(
        self,
        model: Path,
        inputs: list[RawTensor],
        outputs: Sequence[TensorSpec],
        what: str,
        *,
        folder: Path,
        states: Mapping[str, str] | None = None,
    ) -> Rows:
        """Return the outputs of a model on all rows, finite and of the declared shapes.

        With ``states`` the rows are steps of sequences as long as the limit, and the model gets
        its own states back; rows at the end that fill no sequence are left out.

        Raises:
            Refusal: ``does_not_run``, ``wrong_outputs`` or ``outputs_too_large``, or as :meth:`do`
                says.
        """
        rows, steps = inputs[0].shape[0], 1
        if states:
            steps = min(rows, limits.SEQUENCE_STEPS)
            rows -= rows % steps
            inputs = head(inputs, rows)
        _check_room(rows * row_bytes(outputs), what)
        target = folder / "output-"
        task = Run(str(model), what, inputs, list(outputs), str(target), dict(states or {}), steps)
        self.do(task, Ran, gate="execution", folder=folder)
        with Shelf(folder.parent) as shelf:
            for number, spec in enumerate(outputs):
                path = Path(f"{target}{number}")
                shape, dtype = (rows, *cast(list[int], spec.shape[1:])), np.dtype(spec.dtype)
                expected = math.prod(shape) * dtype.itemsize
                # The child wrote it: no link is followed, and no more is read than was asked for.
                if path.is_symlink() or path.stat().st_size != expected:
                    raise Refusal(
                        "execution",
                        "wrong_outputs",
                        f"Output {spec.name!r} of the {what} has another size than it declares.",
                        "Look at the shapes of its outputs on your golden inputs.",
                    )
                shelf.put(spec.name, _read(path, expected), dtype, shape)
                path.unlink()
            return shelf.arrays()

    def close(self) -> None:
        """End the helper, and with it the task that it is at."""
        self._closed.set()
        helper = self._helper
        if helper is not None:
            helper.kill()  # whoever waits for it holds the lock
        with self._lock:
            self._stop()

    def _ended(self, answer: Answer, gate: str, wall_s: float) -> Refusal:
        if answer.ending is Ending.TIMED_OUT:
            return Refusal(
                gate,
                "child_timed_out",
                f"The process that tried the model gave no result: {answer.detail}.",
                "Look for loops in the model; a device would wait for ever, too.",
                bound=wall_s,
            )
        return Refusal(
            gate,
            "child_crashed",
            f"The process that tried the model ended with {answer.detail}; it held up to "
            f"{answer.peak_bytes / 1024**2:.0f} MiB.",
            "Run the model where you export it; it must not crash, nor ask for more memory than "
            "a device has.",
            figure=float(answer.peak_bytes),
            bound=float(self._allowance.memory_bytes),
        )

    def _ask(self, request: Request) -> Answer:
        helper = self._running()
        try:
            write_frame(cast(BinaryIO, helper.stdin), request)
        except OSError:
            self._stop()
            helper = self._running()
            write_frame(cast(BinaryIO, helper.stdin), request)
        answers = cast(BinaryIO, helper.stdout)
        waiter = select.poll()  # select() fails on the numbers of a process with many sockets
        waiter.register(answers, select.POLLIN)
        ready = waiter.poll((request.allowance.wall_s + _GRACE_S) * 1000)
        answer = read_frame(answers, Answer) if ready else None
        if answer is None:
            self._stop()
            ending = Ending.CRASHED if ready else Ending.TIMED_OUT
            return Answer(ending, "no answer of the helper process", b"", 0)
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._helper is not None and self._helper.poll() is not None:
            self._stop()
        if self._helper is None:
            self._helper = subprocess.Popen(
                [sys.executable, "-m", "fleet_server.releases.laboratory.forkserver"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=_environment(),
            )
        return self._helper

    def _stop(self) -> None:
        helper, self._helper = self._helper, None
        if helper is None:
            return
        helper.kill()
        for stream in (helper.stdin, helper.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # unsent bytes to a helper that is gone
                    stream.close()
        helper.wait()


def _plain(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _check_room(size_bytes: int, what: str) -> None:
    if size_bytes > limits.CHILD_FILE_BYTES:
        raise Refusal(
            "execution",
            "outputs_too_large",
            f"The {what} answers all example rows with {size_bytes} bytes.",
            "Send fewer rows, or export the model with smaller outputs.",
            figure=size_bytes,
            bound=limits.CHILD_FILE_BYTES,
        )


def _read(path: Path, size_bytes: int) -> Iterator[bytes]:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        while size_bytes and (piece := file.read(min(size_bytes, PIECE_BYTES))):
            size_bytes -= len(piece)
            yield piece


def lay_out(rows: Rows, folder: Path, field: str) -> list[RawTensor]:
    """Write rows where children can map them into memory."""
    tensors = []
    for number, (name, array) in enumerate(rows.items()):
        path = folder / f"{field}-{number}.raw"
        np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tofile(path)
        tensors.append(RawTensor(name, array.dtype.name, list(array.shape), str(path)))
    return tensors


def take_out(made: Path, kept: Path, size_bytes: int) -> None:
    """Take a model out of the folder that children write to: nobody changes it any more.

    Raises:
        Refusal: ``child_crashed`` if it is not the file that was made.
    """
    if made.is_symlink() or made.stat().st_size != size_bytes:
        raise Refusal(
            "examination",
            "child_crashed",
            "The rewritten model is not the file that was made.",
            "Push the version again; look into the server's log if it comes back.",
        )
    kept.unlink(missing_ok=True)  # of an attempt that a crash ended
    made.rename(kept)


def head(tensors: Sequence[RawTensor], rows: int) -> list[RawTensor]:
    """Return the first rows of tensors that lie in files."""
    return [
        RawTensor(item.name, item.dtype, [min(rows, item.shape[0]), *item.shape[1:]], item.path)
        for item in tensors
    ]


def _environment() -> dict[str, str]:
    """The helper's own: where to find this package, no secrets, and one thread, since it forks."""
    source = str(Path(__file__).resolve().parents[3])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }

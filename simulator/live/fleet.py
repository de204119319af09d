"""A live fleet as seen from outside: real agents in a few processes, started, watched, stopped.

Decides how devices are spread over processes and gathers what the processes say. Each device has a
connection, a folder and a runtime session of its own; a process's interpreter, its prober and its
two worker threads are shared by the devices in it.
"""

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import httpx
import msgspec
import numpy as np

from device_agent.inference.confinement import environment
from device_agent.shell.identity import FILE_NAME
from fleet_contract import codec
from simulator import clock
from simulator.errors import SimulatorError
from simulator.live.messages import DeviceTask, ProcessStatus, ProcessTask

READY_S = 180.0
STOP_S = 60.0
API_TIMEOUT_S = 30.0
_LINE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class FleetStatus:
    """The whole fleet: sums over its processes, and what answers on each device."""

    active: dict[str, str]
    connected: int
    predictions: int
    failed_inferences: int
    without_model: int
    disabled: int
    failures: list[str]
    cpu_s: float
    threads: int


class LiveFleet:
    """Starts with the ``with`` block, or :meth:`start`, and stops with it."""

    def __init__(
        self,
        *,
        url: str,
        token: str,
        devices: int,
        processes: int,
        folder: Path,
        seed: int = 1,
        model: str = "digits",
        rate: float = 5.0,
        images: str = "",
        labels: Mapping[str, str] | None = None,
        prefix: str = "device",
    ) -> None:
        """Describe the fleet.

        Args:
            url: of the fleet server.
            token: of an operator, who makes the devices' one-time tokens.
            devices: how many.
            processes: over how many processes they are spread.
            folder: gets a folder a device; one that is enrolled already is used again.
            seed: for the images' order.
            model: what is fed.
            rate: predictions a second on each device.
            images: an npz file with one array, named as the model's input; empty for
                scikit-learn's digits.
            labels: of every device.
            prefix: of the devices' names.
        """
        self._url = url.rstrip("/")
        self._token = token
        self._folder = folder
        self._names = [f"{prefix}-{number:04d}" for number in range(1, devices + 1)]
        self._processes = max(1, min(processes, devices))
        self._seed = seed
        self._model = model
        self._rate = rate
        self._images = images
        self._labels = dict(labels or {})
        self._running: list[_Process] = []

    def __enter__(self) -> "LiveFleet":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Enrol and start every device; returns when all of them run.

        Raises:
            SimulatorError: if that fails, with the reason in words.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        tasks = [self._task(name) for name in self._names]
        images = self._images or self._digits()
        try:
            for number in range(self._processes):
                task = ProcessTask(
                    self._model,
                    tasks[number :: self._processes],
                    self._rate,
                    images,
                    self._seed + number,
                )
                log = self._folder / f"process-{number}.log"
                self._running.append(_Process(task, log))
            deadline_s = clock.monotonic_s() + READY_S
            for process in self._running:
                process.wait_until_ready(deadline_s)
        except BaseException:
            self.stop()
            raise

    def status(self) -> FleetStatus:
        """Return what the processes said last.

        Raises:
            SimulatorError: if one has ended without being asked to.
        """
        return _sum([process.status() for process in self._running])

    def stop(self) -> None:
        """Stop every device in order; what they counted to the end stays readable."""
        for process in self._running:
            process.ask_to_stop()
        for process in self._running:
            process.wait_until_stopped()

    @property
    def process_ids(self) -> list[int]:
        """Return the processes, for whoever wants to kill one."""
        return [process.process_id for process in self._running]

    def _digits(self) -> str:
        # Once for all processes: scikit-learn takes a second to import.
        from simulator import digits

        path = self._folder / "images.npz"
        arrays: dict[str, Any] = {digits.INPUT: digits.field_images(self._seed)[0]}
        np.savez(path, **arrays)
        return str(path.resolve())

    def _task(self, name: str) -> DeviceTask:
        folder = self._folder / name
        enrolled = (folder / FILE_NAME).exists()
        return DeviceTask(
            name, str(folder.resolve()), "" if enrolled else self._enrolment_token(name)
        )

    def _enrolment_token(self, name: str) -> str:
        try:
            answer = httpx.post(
                f"{self._url}/v1/devices/tokens",
                json={"device": name, "labels": self._labels},
                headers={"Authorization": f"Bearer {self._token}"},
                timeout=API_TIMEOUT_S,
            )
        except httpx.HTTPError as error:
            raise SimulatorError(f"{self._url} cannot be reached: {error}") from error
        if answer.status_code != httpx.codes.CREATED:
            raise SimulatorError(f"{name} cannot be enrolled: {_reason(answer)}")
        return cast(str, answer.json()["token"])


def _reason(answer: httpx.Response) -> str:
    """Return why the server refused, in its own words if it has any."""
    try:
        problem = answer.json()
        return f"{problem['detail']} {problem['advice']}"
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.text[:500]}"


class _Process:
    """One child, and the thread that reads what it says."""

    def __init__(self, task: ProcessTask, log: Path) -> None:
        self._log = log
        self._last: ProcessStatus | None = None
        self._changed = threading.Condition()
        self._asked_to_stop = False
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "simulator.live.process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(),
                start_new_session=True,  # an interrupt at the terminal is the parent's to handle
            )
        assert self._child.stdin is not None
        self._child.stdin.write(msgspec.json.encode(task) + b"\n")
        self._child.stdin.flush()
        self._reader = threading.Thread(target=self._read, name="live-fleet", daemon=True)
        self._reader.start()

    @property
    def process_id(self) -> int:
        return self._child.pid

    def status(self) -> ProcessStatus:
        with self._changed:
            code = self._child.poll()
            if code is not None and not self._asked_to_stop:
                how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
                raise SimulatorError(
                    f"a process of the live fleet ended by {how}:\n{self._last_words()}"
                )
            if self._last is None:
                raise SimulatorError(
                    f"a process of the live fleet was not ready in time:\n{self._last_words()}"
                )
            return self._last

    def wait_until_ready(self, deadline_s: float) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._last is not None or self._child.poll() is not None,
                max(0.0, deadline_s - clock.monotonic_s()),
            )
        self.status()

    def ask_to_stop(self) -> None:
        self._asked_to_stop = True
        assert self._child.stdin is not None
        if not self._child.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # it has ended
                self._child.stdin.close()

    def wait_until_stopped(self) -> None:
        try:
            self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._reader.join()
        assert self._child.stdout is not None
        self._child.stdout.close()

    def _read(self) -> None:
        assert self._child.stdout is not None
        while line := self._child.stdout.readline(_LINE_BYTES):
            try:
                status = msgspec.json.decode(line, type=codec.prepared(ProcessStatus))
            except msgspec.MsgspecError:
                continue  # a library's word on standard output
            with self._changed:
                self._last = status
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _last_words(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return text[-2000:] or "it left no word"


def _sum(parts: list[ProcessStatus]) -> FleetStatus:
    return FleetStatus(
        active={name: digest for part in parts for name, digest in part.active.items()},
        connected=sum(part.connected for part in parts),
        predictions=sum(part.predictions for part in parts),
        failed_inferences=sum(part.failed_inferences for part in parts),
        without_model=sum(part.without_model for part in parts),
        disabled=sum(part.disabled for part in parts),
        failures=[line for part in parts for line in part.failures],
        cpu_s=sum(part.cpu_s for part in parts),
        threads=sum(part.threads for part in parts),
    )

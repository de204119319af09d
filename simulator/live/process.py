"""One process of a live fleet: ``python -m simulator.live.process``, started by the fleet.

Reads its task from the first line of standard input, enrols and runs its agents, feeds them, and
says how they are on standard output until standard input ends or it is told to terminate.
"""

import faulthandler
import logging
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from device_agent.agent import Agent
from device_agent.errors import EnrolmentFailed
from device_agent.shell.clock import SystemClock
from device_agent.shell.http_source import HttpFailure
from device_agent.shell.identity import enrol
from device_agent.shell.store import Store
from device_agent.shell.workshop import Workshop
from simulator import clock
from simulator.errors import SimulatorError
from simulator.live.feeder import Feeder
from simulator.live.messages import DeviceTask, ProcessStatus, ProcessTask

STATUS_EVERY_S = 0.2
_AT_ONCE = 4
_ENROLMENTS = 3
"""Tries of one device to join, at a server that is too busy to answer in time."""


def main() -> None:
    """Do the task on standard input."""
    faulthandler.enable()  # a process that dies in a library says where
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=ProcessTask)

    def watch() -> None:
        # Whoever started this process may end without a word.
        sys.stdin.buffer.read()
        stopping.set()

    threading.Thread(target=watch, daemon=True).start()
    run(task, sys.stdout.buffer, stopping)


def run(task: ProcessTask, output: BinaryIO, stopping: threading.Event) -> None:
    """Run the task's devices until told to stop."""
    tensor, images = load_images(task.images)
    workshop = Workshop()
    workshop.prober.start()
    agents: dict[str, Agent] = {}
    with ThreadPoolExecutor(_AT_ONCE) as starters:

        def begin(device: DeviceTask) -> tuple[str, Agent]:
            return device.name, _begin(device, workshop)

        for name, agent in starters.map(begin, task.devices):
            agents[name] = agent
    models = {name: agent.model(task.model) for name, agent in agents.items()}
    feeder = Feeder(
        list(models.values()), tensor=tensor, images=images, rate=task.rate, seed=task.seed
    )
    feeder.start()

    def say(*, ready: bool) -> None:
        counts = feeder.counts
        releases = {name: model.release for name, model in models.items()}
        status = ProcessStatus(
            ready=ready,
            active={name: release.digest if release else "" for name, release in releases.items()},
            connected=sum(agent.status().connected for agent in agents.values()),
            predictions=counts.predictions,
            failed_inferences=counts.failed,
            without_model=counts.without_model,
            disabled=counts.disabled,
            failures=counts.failures,
            cpu_s=clock.process_cpu_s(),
            threads=threading.active_count(),
        )
        output.write(msgspec.json.encode(status) + b"\n")
        output.flush()

    try:
        while not stopping.is_set():
            say(ready=True)
            stopping.wait(STATUS_EVERY_S)
    except BrokenPipeError:
        # Nobody listens any more: stop in order, without a last word.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    feeder.stop()
    say(ready=False)
    with ThreadPoolExecutor(_AT_ONCE * 4) as stoppers:
        list(stoppers.map(Agent.stop, agents.values()))
    workshop.close()


def load_images(path: str) -> tuple[str, NDArray[np.float32]]:
    """Return the input's name and the images in an npz file with one array.

    Raises:
        SimulatorError: if it is none.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            (name,) = archive.files
            return name, np.asarray(archive[name], dtype=np.float32)
    except (OSError, ValueError, AttributeError) as error:
        raise SimulatorError(f"{path} is no npz file with one array: {error}") from error


def _begin(device: DeviceTask, workshop: Workshop) -> Agent:
    folder = Path(device.folder)
    if device.token:
        _enrol(device, workshop)
    agent = Agent.open(folder, workshop=workshop)
    agent.start()
    return agent


def _enrol(device: DeviceTask, workshop: Workshop) -> None:
    """Join the fleet; without an answer ask again, which is answered again."""
    store = Store(Path(device.folder))
    for left in reversed(range(_ENROLMENTS)):
        try:
            enrol(store, device.token, device.name, workshop.capabilities, SystemClock())
            return
        except EnrolmentFailed as error:
            if not left or not isinstance(error.__cause__, HttpFailure):
                raise


if __name__ == "__main__":
    main()

"""Runs agents that kill themselves at a given point; a helper process of test_agent_killed.py.

Imports everything once and forks for each agent, so that a life costs no interpreter. Reads one
life a line from standard input, and writes what became of it to standard output, as JSON.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from device_agent.agent import Agent
from device_agent.core import deployment
from device_agent.errors import PredictionError
from device_agent.inference.probe import Prober
from device_agent.inference.probe_child import Verdict
from device_agent.shell import flash, mqtt
from device_agent.shell.performing import Performer

INPUTS = {"x": np.array([1.5, -2.0], np.float32)}
DECISIVE = {"Persist", "Load", "Fetch", "Probe", "Activate", "DropStandby", "Discard"}
LIFE_S = 20.0


class Mortal:
    """Counts the points that a life passes, and ends it at one of them."""

    def __init__(self, trace: Path, kill_at: int) -> None:
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
        self._kill_at = kill_at
        self._passed = 0
        self._lock = threading.Lock()

    def say(self, **words: Any) -> None:
        os.write(self._trace, json.dumps(words).encode() + b"\n")

    def point(self, name: str) -> None:
        with self._lock:
            if self._passed == self._kill_at:
                self.say(died_at=name)
                os.kill(os.getpid(), signal.SIGKILL)
            self._passed += 1
            self.say(point=name)

    def around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def mortal(*arguments: Any, **options: Any) -> Any:
            self.point(f"before {name}")
            result = work(*arguments, **options)
            self.point(f"after {name}")
            return result

        return mortal


def live(folder: Path, kill_at: int, goal: str) -> None:
    """One life: start, predict, and go on until the goal is reached and settled."""
    mortal = Mortal(folder.with_suffix(".trace"), kill_at)
    perform = Performer.perform

    def performed(self: Performer, effect: Any, state: Any) -> Any:
        name = type(effect).__name__
        if name not in DECISIVE:
            return perform(self, effect, state)
        return mortal.around(name, perform)(self, effect, state)

    Performer.perform = performed  # type: ignore[method-assign]
    flash.os.rename = mortal.around("rename", os.rename)  # type: ignore[attr-defined]
    # What is tested is the order of things, not how long they take.
    deployment.FIRST_RETRY_MS = 20
    mqtt.FIRST_DELAY_MS = 1
    Prober.probe = lambda *_: Verdict(None, "")  # type: ignore[method-assign]
    agent = Agent.open(folder)
    agent.start()
    model = agent.model("digits")
    try:
        mortal.say(first=model.predict(INPUTS).release)
    except PredictionError as error:
        mortal.say(first="", error=repr(error))

    def settled(state: Any) -> bool:
        known = state.record.models["digits"]
        return bool(
            known.active_digest == goal
            and known.target == goal
            and known.phase.value in ("succeeded", "rolled_back", "idle")
        )

    reached = agent._daemon.wait_until(settled, LIFE_S)
    mortal.say(reached=reached, last=model.predict(INPUTS).release)
    agent.stop()


def main() -> None:
    for line in sys.stdin:
        life = json.loads(line)
        folder = Path(life["folder"])
        child = os.fork()
        if child == 0:
            try:
                live(folder, life["kill_at"], life["goal"])
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        trace = [json.loads(row) for row in folder.with_suffix(".trace").read_text().splitlines()]
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(json.dumps({"killed": killed, "status": status, "trace": trace}), flush=True)


if __name__ == "__main__":
    main()

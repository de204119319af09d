"""An application on a device that is under attack: it must not notice anything."""

from __future__ import annotations

import threading

import numpy as np

from device_agent.agent import Agent
from tests.attacks.insider import MODEL

INPUTS = {"x": np.array([1.5, -2.0], np.float32)}
OUTPUT = [3.0, -4.0]


class Feeder:
    """An application on the device: it predicts all the time and notes who answered."""

    def __init__(self, agent: Agent) -> None:
        self._model = agent.model(MODEL)
        self._done = threading.Event()
        self.answered = 0
        self.releases: set[str] = set()
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.02):
            try:
                answer = self._model.predict(INPUTS)
            except Exception as error:
                self.failures.append(repr(error))
                continue
            if answer["y"].tolist() != OUTPUT:
                self.failures.append(f"wrong answer {answer['y']}")
            self.releases.add(answer.release)
            self.answered += 1

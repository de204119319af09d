"""Feeding images: every device of a process is asked for predictions at a steady rate.

Decides what counts as a failed inference: any call that raises, except before a device's first
release and while the fleet has disabled the model, for which an application has its own fallback.
One thread feeds all devices of a process in turn.
"""

import heapq
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from device_agent.agent import LocalModel
from device_agent.errors import ModelDisabled, NoModel
from simulator import clock

FAILURES_KEPT = 5
_LONGEST_WAIT_S = 0.5


@dataclass
class Counts:
    """What came of the calls so far."""

    predictions: int = 0
    failed: int = 0
    without_model: int = 0
    disabled: int = 0
    failures: list[str] = field(default_factory=list)


class Feeder:
    """Feeds models until it is stopped; ``counts`` may be read at any time."""

    def __init__(
        self,
        models: Sequence[LocalModel],
        *,
        tensor: str,
        images: NDArray[np.float32],
        rate: float,
        seed: int,
    ) -> None:
        """Take the models, one a device.

        Args:
            models: the model of each device.
            tensor: the name of its input.
            images: float32 whose first axis is the image.
            rate: calls a second on each device.
            seed: for the order of the images and the phases of the devices.
        """
        self.counts = Counts()
        self._models = models
        self._tensor = tensor
        self._images = images
        self._interval_s = 1 / rate
        self._chance = random.Random(seed)
        self._answered = [False] * len(models)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feeder", daemon=True)

    def start(self) -> None:
        """Begin to feed."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the call under way and end."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        began_s = clock.monotonic_s()
        due = [
            (began_s + self._interval_s * self._chance.random(), index)
            for index in range(len(self._models))
        ]
        heapq.heapify(due)
        while due and not self._stopping.is_set():
            at_s, index = due[0]
            wait_s = at_s - clock.monotonic_s()
            if wait_s > 0:
                self._stopping.wait(min(wait_s, _LONGEST_WAIT_S))
                continue
            self._ask(index)
            # A process that is late leaves calls out rather than making them all at once.
            next_s = max(at_s + self._interval_s, clock.monotonic_s())
            heapq.heapreplace(due, (next_s, index))

    def _ask(self, index: int) -> None:
        number = self._chance.randrange(len(self._images))
        counts = self.counts
        try:
            self._models[index].predict({self._tensor: self._images[number : number + 1]})
        except NoModel as error:
            if not self._answered[index]:
                counts.without_model += 1
            else:
                self._failed(index, error)
        except ModelDisabled:
            counts.disabled += 1
        except Exception as error:
            self._failed(index, error)
        else:
            self._answered[index] = True
            counts.predictions += 1

    def _failed(self, index: int, error: Exception) -> None:
        self.counts.failed += 1
        if len(self.counts.failures) < FAILURES_KEPT:
            self.counts.failures.append(f"device {index} of its process: {error!r}"[:300])

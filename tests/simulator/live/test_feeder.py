"""What counts as a failed inference in a live fleet: no more and no less than an application's."""

import time
from collections.abc import Callable

import numpy as np
import pytest

from device_agent.errors import InferenceFailed, ModelDisabled, NoModel
from simulator.live.feeder import Feeder

IMAGES = np.zeros((3, 1, 8, 8), np.float32)


class Model:
    """Gives these outcomes in turn, the last one for ever."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self._outcomes = list(outcomes)

    def predict(self, inputs: dict[str, np.ndarray]) -> None:
        assert inputs["image"].shape == (1, 1, 8, 8)
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if outcome is not None:
            raise outcome


def fed(model: Model, until: Callable[[Feeder], bool]) -> Feeder:
    feeder = Feeder([model], tensor="image", images=IMAGES, rate=500.0, seed=1)  # type: ignore[list-item]
    feeder.start()
    deadline = time.monotonic() + 60
    while not until(feeder):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    feeder.stop()
    return feeder


def test_no_model_before_the_first_release_is_no_failure() -> None:
    model = Model(NoModel(), NoModel(), None)
    counts = fed(model, lambda feeder: feeder.counts.predictions >= 3).counts
    assert (counts.without_model, counts.failed) == (2, 0)


@pytest.mark.parametrize("error", [NoModel("gone"), InferenceFailed("bad"), ValueError("bug")])
def test_any_error_after_the_first_answer_is_a_failure(error: Exception) -> None:
    model = Model(None, error, None)
    counts = fed(model, lambda feeder: feeder.counts.predictions >= 3).counts
    assert counts.failed == 1
    assert repr(error) in counts.failures[0]


def test_disabled_model_is_no_failure() -> None:
    model = Model(None, ModelDisabled(), None)
    counts = fed(model, lambda feeder: feeder.counts.predictions >= 3).counts
    assert (counts.disabled, counts.failed) == (1, 0)

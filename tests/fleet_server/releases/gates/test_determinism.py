"""Guards from a model that fails its self-test on a device by chance."""

from typing import Any

import msgspec
import pytest

from fleet_server.releases.gates import determinism


@pytest.mark.parametrize(
    ("field", "figure", "bound"),
    [
        ("run_difference", 1e-4, determinism.SAME),
        ("session_difference", 1e-4, determinism.SAME),
        ("batch_difference", 0.1, determinism.ALONE),
    ],
)
def test_answers_that_differ(
    given: Any, sound: Any, refusal: Any, field: str, figure: float, bound: float
) -> None:
    spoilt = given(exercise=msgspec.structs.replace(sound, **{field: figure}))
    problem = refusal(spoilt, {"determinism": "it will do"})
    assert (problem.gate, problem.code) == ("determinism", "determinism_failed")
    assert (problem.figure, problem.bound) == (figure, bound)

"""Guards from answers that are no numbers, and from answers that noise decides."""

from typing import Any

import msgspec
import pytest

from fleet_server.releases.gates import robustness


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("missing_finite", "missing values"),
        ("out_of_range_finite", "out of range"),
        ("corrupted_finite", "corrupted"),
    ],
)
def test_bad_inputs_that_give_no_numbers(
    given: Any, sound: Any, refusal: Any, field: str, name: str
) -> None:
    problem = refusal(given(exercise=msgspec.structs.replace(sound, **{field: 0.99})))
    assert (problem.gate, problem.code) == ("robustness", "robustness_failed")
    assert (problem.figure, problem.bound) == (0.99, 1.0)
    assert name in problem.detail


def test_model_that_passes_missing_values_on_is_told_of(
    given: Any, sound: Any, results: Any
) -> None:
    """Most float models do; what ships may even hide it."""
    for share in (0.25, 1.0):
        spread = msgspec.structs.replace(sound, missing_finite=share, missing_finite_float=0.25)
        found = results(given(exercise=spread))["finite_missing"]
        assert (found.figure, found.bound) == (share, 0.25)
        assert "applications must not send any" in found.note
        assert "Where(IsNaN" in found.note
    assert "must not" not in results(given())["finite_missing"].note


def test_release_that_is_worse_than_its_float_model(given: Any, sound: Any, refusal: Any) -> None:
    worse = msgspec.structs.replace(sound, missing_finite=0.2, missing_finite_float=0.25)
    problem = refusal(given(exercise=worse))
    assert (problem.figure, problem.bound) == (0.2, 0.25)


def test_noise_that_decides(given: Any, sound: Any, refusal: Any) -> None:
    problem = refusal(given(exercise=msgspec.structs.replace(sound, flips=0.2)))
    assert (problem.figure, problem.bound) == (0.2, robustness.MOST_FLIPS)


def test_codes_are_never_missing(given: Any, sound: Any, results: Any) -> None:
    codes = msgspec.structs.replace(
        sound, missing_finite=None, missing_finite_float=None, flips=None
    )
    found = results(given(exercise=codes))
    assert found["finite_missing"].figure is None
    assert found["flip_rate"].bound is None

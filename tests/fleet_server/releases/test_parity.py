"""Guards from a quantised model that is another model."""

from typing import Any

import numpy as np
import pytest

from fleet_contract.manifest import TensorSpec
from fleet_server.releases import parity
from fleet_server.releases.states import OutputKind, Refusal

OUTPUTS = [TensorSpec("logits", "float32", [None, 3])]


def _scores(winners: list[int]) -> dict[str, np.ndarray]:
    return {"logits": np.eye(3, dtype=np.float32)[winners] * 10}


def _compare(found: dict, kind: OutputKind = OutputKind.LOGITS) -> parity.Parity:
    return parity.compare(_scores([0, 1, 2, 0] * 25), found, OUTPUTS, kind)


def test_equal_models() -> None:
    found = _compare(_scores([0, 1, 2, 0] * 25))
    assert found == parity.Parity(100, 1.0, parity.MOST_SQNR_DB, 0.0, 1.0)
    parity.check(found, 1.0)


@pytest.mark.parametrize(("wrong", "passes"), [(1, True), (2, False)])
def test_other_class_on_too_many_rows(wrong: int, passes: bool) -> None:
    found = _compare(_scores([1] * wrong + ([0, 1, 2, 0] * 25)[wrong:]))
    # The second row is class 1 anyway.
    assert found.agreement == 0.99
    found = _compare(_scores([2] * wrong + ([0, 1, 2, 0] * 25)[wrong:]))
    assert found.agreement == 1 - wrong / 100
    if passes:
        parity.check(found, 0.99)
        return
    with pytest.raises(Refusal) as caught:
        parity.check(found, 0.99)
    problem = caught.value.problem
    assert (problem.gate, problem.code) == ("parity", "parity_failed")
    assert (problem.figure, problem.bound) == (0.98, 0.99)


def test_noise_that_leaves_the_winner_alone() -> None:
    noisy = {"logits": _scores([0, 1, 2, 0] * 25)["logits"] * 3}
    found = _compare(noisy)
    assert found.agreement == 1.0
    with pytest.raises(Refusal) as caught:
        parity.check(found, 0.99)
    assert caught.value.problem.bound == parity.LEAST_SQNR_DB
    assert caught.value.problem.figure == pytest.approx(-6.02, abs=0.01)


def test_values_have_no_winner() -> None:
    found = _compare(_scores([2, 2, 2, 2] * 25), OutputKind.VALUES)
    assert found.agreement is None
    with pytest.raises(Refusal, match="signal-to-noise"):
        parity.check(found, 0.99)


def _of(*rows: Any) -> dict[str, np.ndarray]:
    return {"logits": np.array(rows, np.float32)}


def _failed(found: parity.Parity) -> Any:
    with pytest.raises(Refusal) as caught:
        parity.check(found, 0.99)
    return caught.value.problem


def test_one_answer_to_everything_where_values_are_far_from_zero() -> None:
    """A pressure in pascals: whoever always says the mean is off by a hundredth of the signal."""
    float_model = _of(*([101_325 + 500 * np.sin(row), 0, 0] for row in range(100)))
    same = _of(*[[101_325, 0, 0]] * 100)
    found = parity.compare(float_model, same, OUTPUTS, OutputKind.VALUES)
    assert found.sqnr_db > 40
    problem = _failed(found)
    assert (problem.gate, problem.bound) == ("parity", parity.LEAST_FOLLOWED)
    assert problem.figure == pytest.approx(0, abs=0.01)
    near = {"logits": float_model["logits"] + 50}
    parity.check(parity.compare(float_model, near, OUTPUTS, OutputKind.VALUES), 0.99)


def test_one_answer_to_everything_where_a_class_is_rare() -> None:
    float_model = _of(*[[0.99, 0.01, 0]] * 995, *[[0.1, 0.9, 0]] * 5)
    same = _of(*[[0.99, 0.01, 0]] * 1_000)
    found = parity.compare(float_model, same, OUTPUTS, OutputKind.PROBABILITIES)
    assert found.agreement == 0.995
    assert found.followed == pytest.approx(0, abs=0.01)
    assert _failed(found).bound == parity.LEAST_FOLLOWED


def test_golden_rows_of_one_class_ask_for_no_degrees_of_certainty() -> None:
    sure = _of(*([0.99 + 0.001 * (row % 2), 0.01, 0] for row in range(100)))
    less = _of(*[[0.98, 0.02, 0]] * 100)
    parity.check(parity.compare(sure, less, OUTPUTS, OutputKind.PROBABILITIES), 0.99)


def test_numbers_whose_squares_overflow() -> None:
    outputs = [TensorSpec("logits", "float64", [None, 1])]
    large: Any = {"logits": 1.5e308 * np.linspace(-1, 1, 50)[:, None]}
    other: Any = {"logits": -large["logits"]}
    found = parity.compare(large, other, outputs, OutputKind.VALUES)
    assert found.sqnr_db == pytest.approx(-6.02, abs=0.01)
    assert np.isfinite(found.largest_difference)
    assert np.isfinite(parity.device_tolerance(large["logits"]))


def test_outputs_of_unlike_ranges_are_each_allowed_their_own() -> None:
    found = parity.differences(
        {"a": np.zeros((3, 1)), "b": np.ones((3, 1))},
        {"a": np.full((3, 1), 0.5), "b": np.full((3, 1), -9.0)},
    )
    assert found == {"a": 0.5, "b": 10.0}


def test_outputs_that_are_all_alike_are_not_compared_to_the_bit() -> None:
    assert parity.device_tolerance(_of(*[[255, 255, 255]] * 4)["logits"]) == parity.DEVICE_STEPS
    assert parity.device_tolerance(_of(*[[-255, -255, -255]] * 4)["logits"]) == parity.DEVICE_STEPS
    assert 0 < parity.device_tolerance(_of(*[[0, 0, 0]] * 4)["logits"]) < 0.01
    assert parity.device_tolerance(_of([0, 255, 3])["logits"]) == parity.DEVICE_STEPS


def test_silence_is_not_parity() -> None:
    silent: Any = {"logits": np.zeros((4, 3), dtype=np.float32)}
    loud: Any = {"logits": np.ones((4, 3), dtype=np.float32)}
    assert parity.compare(silent, loud, OUTPUTS, OutputKind.VALUES).sqnr_db == 0.0
    assert parity.compare(silent, silent, OUTPUTS, OutputKind.VALUES).sqnr_db > 100

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
    assert found == parity.Parity(100, 1.0, parity.MOST_SQNR_DB, 0.0)
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


def test_silence_is_not_parity() -> None:
    silent: Any = {"logits": np.zeros((4, 3), dtype=np.float32)}
    loud: Any = {"logits": np.ones((4, 3), dtype=np.float32)}
    assert parity.compare(silent, loud, OUTPUTS, OutputKind.VALUES).sqnr_db == 0.0
    assert parity.compare(silent, silent, OUTPUTS, OutputKind.VALUES).sqnr_db > 100

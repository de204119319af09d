"""Guards from gates that a reason opens though they keep a release the model that it is."""

from typing import Any

import pytest

from fleet_server.releases.gates import table
from fleet_server.releases.states import GateResult


def test_gates_that_no_reason_opens() -> None:
    assert {name for name in table.GATES if not table.may_override(name)} == {
        *("reference", "feature-schema", "determinism")
    }
    for name in ("parity", "examination", "data", "quantisation", "sealing", "surprise"):
        assert not table.may_override(name)
    assert table.may_override("custom:fairness")


def test_first_failure_in_order_refuses(given: Any, refusal: Any) -> None:
    mine = GateResult("custom:fairness", "gap", 0.3, 0.1, passed=False, note="A gap.")
    problem = refusal(given(custom=[mine]))
    assert (problem.gate, problem.code) == ("custom:fairness", "custom_gate_failed")
    assert (problem.figure, problem.bound) == (0.3, 0.1)
    evidence = given(custom=[mine], required_metadata=["owner"])
    assert refusal(evidence).gate == "metadata"
    assert refusal(evidence, {"metadata": "later"}).gate == "custom:fairness"


@pytest.mark.parametrize("name", ["metric", "custom:fairness"])
def test_reason_for_what_passed_is_not_written_down(given: Any, results: Any, name: str) -> None:
    passed = GateResult(name, "gap", 0.0, 0.1, passed=True)
    found = results(given(custom=[passed]), {name: "to be safe"})
    assert found["gap"].overridden == ""

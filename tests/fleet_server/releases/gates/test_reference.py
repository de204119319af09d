"""Guards from an export that is not the model that was trained."""

from typing import Any

import numpy as np
import pytest

from fleet_server.releases.gates import reference


def test_reference_in_another_type_and_of_many_numbers(given: Any, results: Any) -> None:
    exported = np.arange(400_000, dtype=np.float32).reshape(400, 1_000)
    evidence = given(
        reference={"logits": exported.astype(np.float64)}, float_outputs={"logits": exported}
    )
    assert results(evidence)["difference of logits"].figure == 0


def test_export_that_says_something_else(given: Any, refusal: Any, results: Any) -> None:
    trained = {"logits": np.linspace(0, 1, 12).reshape(4, 3)}
    close = {"logits": (trained["logits"] + 1e-4).astype(np.float32)}
    assert results(given(reference=trained, float_outputs=close))["difference of logits"].passed
    problem = refusal(given(reference=trained, float_outputs={"logits": trained["logits"] + 0.02}))
    assert (problem.gate, problem.code) == ("reference", "reference_failed")
    assert (problem.figure, problem.bound) == (pytest.approx(0.02), reference.MOST_DIFFERENCE)


def test_reason_does_not_make_it_the_same_model(given: Any, refusal: Any) -> None:
    spoilt = given(reference={"logits": np.ones((4, 3))})
    assert refusal(spoilt, {"reference": "it will do"}).gate == "reference"

"""Guards from a release that nobody owns."""

from typing import Any

REQUIRED = ["licence", "notes.owner", "hyperparameters"]


def test_metadata_that_is_missing_empty_or_unknown(given: Any, refusal: Any) -> None:
    told = {"licence": " ", "notes": {"owner": "Ann"}, "hyperparameters": {}}
    problem = refusal(given(required_metadata=[*REQUIRED, "no_such"], metadata=told))
    assert (problem.gate, problem.code) == ("metadata", "metadata_failed")
    assert (problem.figure, problem.bound) == (3, 0)
    assert "licence, hyperparameters, no_such" in problem.detail


def test_complete_metadata(given: Any, results: Any) -> None:
    told = {"licence": "MIT", "notes": {"owner": "Ann"}, "hyperparameters": {"rate": 0.1}}
    assert results(given(required_metadata=REQUIRED, metadata=told))["missing_fields"].passed
    assert results(given(required_metadata=["hours"], metadata={"hours": 0}))
    assert "missing_fields" not in results(given())

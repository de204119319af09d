"""Guards from applications that meet a model with other inputs."""

from typing import Any

from fleet_server.releases.gates.given import SchemaChange

CHANGE = ["The inputs were x and are y."]


def test_change_that_nobody_approved(given: Any, refusal: Any) -> None:
    problem = refusal(given(schema=SchemaChange(CHANGE, "", 1_000, 1_000)))
    assert (problem.gate, problem.code) == ("feature-schema", "schema_changed")
    assert (problem.figure, problem.bound) == (1, 0)
    assert "--approve-schema" in problem.advice


def test_approved_change_is_tried_on_a_thousand_records(
    given: Any, refusal: Any, results: Any
) -> None:
    problem = refusal(given(schema=SchemaChange(CHANGE, "apps are ready", 1_000, 999)))
    assert (problem.gate, problem.figure, problem.bound) == ("feature-schema", 999, 1_000)
    assert "golden" in problem.detail
    found = results(given(schema=SchemaChange(CHANGE, "apps are ready", 1_000, 1_000)))
    assert found["changes"].figure == 1
    assert "apps are ready" in found["changes"].note

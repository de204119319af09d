"""Guards the API of rollouts on a running server: refusals, and what the docs promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet_server.rollouts.states import diagram

ROOT = Path(__file__).resolve().parents[3]


def test_nobody_without_a_token(server) -> None:
    for method, path in (("GET", "/v1/rollouts"), ("POST", "/v1/rollouts/0123/rollback")):
        assert server.anonymous.request(method, path, json={}).status_code == 401


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 422, ""),
        ({"cohort": "default", "model": "digits", "template": "reckless"}, 422, "no plan"),
        ({"cohort": "nowhere", "model": "digits"}, 404, "no cohort"),
        ({"cohort": "default", "model": "digits", "plan": {"name": "x", "stages": []}}, 422, "one"),
        ({"cohort": "default", "model": "digits", "nonsense": 1}, 422, ""),
    ],
)
def test_malformed_plan_changes_something(server, body, status: int, words: str) -> None:
    answer = server.client.post("/v1/rollouts/plan", json=body)
    assert answer.status_code in {status, 400}
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert words in answer.json()["detail"]


def test_plan_of_a_cohort_that_runs_nothing(server) -> None:
    answer = server.client.post("/v1/rollouts/plan", json={"cohort": "default", "model": "digits"})
    found = answer.json()
    assert answer.status_code == 200
    assert found["first_release"] is True
    assert [stage["kind"] for stage in found["plan"]["stages"]] == ["full"]
    assert sum(row["alpha"] for row in found["ledger"]) == pytest.approx(0.05)


def test_rollout_of_a_release_that_was_never_pushed(server) -> None:
    body = {"cohort": "default", "model": "digits", "version": "1.0.0", "start": True}
    assert server.client.post("/v1/rollouts", json=body).status_code == 404
    assert server.client.get("/v1/rollouts").json() == []


@pytest.mark.parametrize("action", ["start", "pause", "resume", "abort", "rollback"])
def test_action_on_a_rollout_that_does_not_exist(server, action: str) -> None:
    answer = server.client.post(f"/v1/rollouts/0123456789ab/{action}", json={})
    assert answer.status_code == 404
    assert "rollout list" in answer.json()["advice"]


def test_evidence_by_something_that_is_no_digest(server) -> None:
    assert server.client.get("/v1/evidence/abc").status_code in {400, 422}
    assert server.client.get(f"/v1/evidence/{'0' * 64}").status_code == 404


def test_documented_states_differ_from_the_table() -> None:
    document = (ROOT / "docs/internals/decisions.md").read_text(encoding="utf-8")
    assert diagram() in document

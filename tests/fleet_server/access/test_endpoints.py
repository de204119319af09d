"""Guards the doors of a running server: each endpoint against a viewer, and limited tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from fleet_server.access.permissions import ENDPOINTS, Door, Permission, Reach

FILLED = {
    "name": "dev-1",
    "model": "audio",
    "version": "1.0.0",
    "rollout": "0123456789ab",
    "digest": "0" * 64,
    "old_digest": "0" * 64,
    "new_digest": "1" * 64,
    "path": f"artifacts/{'0' * 64}",
    "token": "0" * 12,
    "upload": "0" * 32,
    "plot": "confusion",
    "number": "1",
}


@pytest.fixture
def token_of(server: Any) -> Any:
    def make(*roles: str, **limits: Any) -> str:
        body = {"user": "ann", "roles": roles, **limits}
        answer = server.client.post("/v1/tokens", json=body)
        assert answer.status_code == 201, answer.text
        token: str = answer.json()["token"]
        return token

    return make


def call(server: Any, method: str, path: str, token: str, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"}
    answer: httpx.Response = server.anonymous.request(
        method, path.format(**FILLED), headers=headers, **options
    )
    return answer


def test_viewer_who_changes_something(server: Any, token_of: Any) -> None:
    viewer = token_of("viewer")
    for (method, path), rule in ENDPOINTS.items():
        if rule.door is not Door.OPERATOR:
            continue
        answer = call(server, method, path, viewer, json={})
        if rule.permission is Permission.READ:
            assert answer.status_code not in {401, 403}, (method, path, answer.text)
        else:
            assert answer.status_code == 403, (method, path, answer.text)
            if method == "HEAD":
                continue  # an answer without a body
            assert answer.json()["type"].endswith("missing_permission")
            assert str(rule.permission) in answer.json()["detail"]


def test_nobody_who_gets_in(server: Any) -> None:
    for (method, path), rule in ENDPOINTS.items():
        if rule.door is not Door.ANYONE:
            answer = server.anonymous.request(method, path.format(**FILLED), json={})
            expected = 422 if rule.door is Door.ENROLMENT else 401
            assert answer.status_code == expected, (method, path, answer.text)


def test_token_of_a_family_that_reaches_beyond_it(server: Any, token_of: Any) -> None:
    limited = token_of("admin", models=["vision-*"])
    bodies = {
        "/v1/rollouts": {"cohort": "default", "model": "audio", "version": "1.0.0"},
        "/v1/rollouts/plan": {"cohort": "default", "model": "audio"},
    }
    for (method, path), rule in ENDPOINTS.items():
        if rule.reach is Reach.FLEET:
            answer = call(server, method, path, limited, json={})
            assert answer.status_code == 403, (method, path, answer.text)
            assert answer.json()["type"].endswith("whole_fleet")
        elif rule.reach is Reach.MODEL and "{rollout}" not in path:
            answer = call(server, method, path, limited, json=bodies.get(path, {}))
            assert answer.status_code == 403, (method, path, answer.text)
            assert answer.json()["type"].endswith("other_family")
    own = {"cohort": "default", "model": "vision-cats"}
    assert call(server, "POST", "/v1/rollouts/plan", limited, json=own).status_code == 200


def test_endpoint_that_was_forgotten_in_the_table(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = {key: rule for key, rule in ENDPOINTS.items() if key != ("GET", "/v1/cohorts")}
    monkeypatch.setattr("fleet_server.access.authentication.ENDPOINTS", rest)
    answer = server.client.get("/v1/cohorts")
    assert answer.status_code == 403
    assert answer.json()["type"].endswith("undeclared")


def test_guessing_at_the_running_server(server: Any) -> None:
    answers = [call(server, "GET", "/v1/models", f"ef_{number}") for number in range(12)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 2
    assert answers[-1].headers["retry-after"] == "60"
    assert answers[-1].headers["content-type"] == "application/problem+json"
    # Whoever was let in before is not locked out; somebody new from there has to wait.
    body: dict[str, Any] = {"secret": "0" * 64, "device": "dev-1", "csr": ""}
    body["capabilities"] = {
        "runtimes": {},
        "machine": "x",
        "max_opset": 1,
        "max_ir_version": 1,
        "memory_bytes": 1,
    }
    assert server.anonymous.post("/v1/devices/enrol", json=body).status_code == 429


def test_admin_who_is_locked_out_by_a_neighbour(server: Any) -> None:
    assert server.client.get("/v1/models").status_code == 200
    for number in range(12):
        call(server, "GET", "/v1/models", f"ef_{number}")
    assert server.client.get("/v1/models").status_code == 200


def test_secret_of_a_token_in_log_audit_or_problem(
    log_file: Path, server: Any, token_of: Any
) -> None:
    token = token_of("viewer", valid_ms=3_600_000)
    told = call(server, "POST", "/v1/tokens", token, json={}).text
    told += call(server, "GET", "/v1/models", token + "0").text
    listed = server.client.get("/v1/tokens").json()["tokens"]
    told += str(listed)
    mine = next(item for item in listed if item["user"] == "ann")
    assert server.client.delete(f"/v1/tokens/{mine['id']}").json()["revoked_ms"] > 0
    revoked = call(server, "GET", "/v1/models", token)
    assert revoked.status_code == 401 and revoked.json()["type"].endswith("token_revoked")
    told += revoked.text + server.client.get("/v1/audit").text + log_file.read_text()
    assert token not in told and token.removeprefix("ef_") not in told

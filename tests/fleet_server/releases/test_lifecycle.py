"""Guards from a release in production that nobody promoted, and from one that is taken away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import Session

from fleet_server.audit import service as audit
from fleet_server.errors import Conflict
from fleet_server.releases import lifecycle, service
from fleet_server.releases.states import Stage

PATH = "/v1/models/detector/releases"


@pytest.fixture
def staged(bench: Any, staging: Any, rows: Any, npz: Any) -> Callable[..., None]:
    """Stages versions of the detector, one after the other, with a baseline of 1,000 rows."""
    baseline = npz(features=rows(1_000))

    def stage(*versions: str, **options: Any) -> None:
        for version in versions:
            bench.register(bench.upload(version, **{"baseline": baseline} | options))
            staging.submit("detector", version)
            assert bench.settled(version).state == "staged"

    return stage


def _move(bench: Any, version: str, name: str, now_ms: int = 5_000) -> None:
    with bench.database.transaction() as session:
        lifecycle.move(
            session,
            "detector",
            version,
            name,
            reason="it is good",
            user="ann",
            correlation_id="c-2",
            now_ms=now_ms,
        )


def _as(client: Any, role: str) -> Any:
    """The API as somebody with this role uses it."""
    made = client.post("/v1/tokens", json={"user": f"{role}@example.org", "roles": [role]})
    assert made.status_code == 201, made.text
    return type(client)(client.app, {"Authorization": f"Bearer {made.json()['token']}"})


def _problem(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["type"].rpartition(":")[2]


def test_moves_and_what_the_audit_keeps_of_them(bench: Any, client: Any, staged: Any) -> None:
    staged("1.0.0")
    assert client.get(f"{PATH}/1.0.0").json()["stage"] == "staging"
    said = client.post(f"{PATH}/1.0.0/promote", json={"reason": "two weeks of shadow"})
    assert said.status_code == 200, said.text
    assert (said.json()["stage"], said.json()["promoted_ms"] > 0) == ("production", True)
    assert client.get("/v1/models").json()["models"][0]["production"] == "1.0.0"
    again = client.post(f"{PATH}/1.0.0/promote", json={"reason": "again"})
    assert _problem(again) == (409, "wrong_stage")
    assert client.post(f"{PATH}/1.0.0/archive", json={"reason": "old"}).status_code == 200
    for move in ("promote", "archive"):
        back = client.post(f"{PATH}/1.0.0/{move}", json={"reason": "back"})
        assert _problem(back) == (409, "wrong_stage")
    with bench.database.reading() as session:
        kept = {item.action: item for item in audit.newest(session)}
    assert kept["release.promote"].reason == "two weeks of shadow"
    assert kept["release.archive"].detail["from"] == "production"
    assert kept["release.promote"].user == "admin"


def test_move_without_a_reason_or_of_what_is_not_staged(
    bench: Any, client: Any, staged: Any
) -> None:
    staged("1.0.0")
    assert client.post(f"{PATH}/1.0.0/promote", json={"reason": ""}).status_code == 422
    assert client.post(f"{PATH}/9.0.0/promote", json={"reason": "x"}).status_code == 404
    bench.register(bench.upload("1.1.0"))
    early = client.post(f"{PATH}/1.1.0/promote", json={"reason": "x"})
    assert _problem(early) == (409, "release_not_staged")


def test_who_pushes_does_not_promote(client: Any, staged: Any) -> None:
    staged("1.0.0")
    body = {"reason": "it is mine"}
    refused = _as(client, "operator").post(f"{PATH}/1.0.0/promote", json=body)
    assert refused.status_code == 403, refused.text
    allowed = _as(client, "approver").post(f"{PATH}/1.0.0/promote", json=body)
    assert allowed.status_code == 200, allowed.text


def test_baseline_too_small_for_production(
    bench: Any, client: Any, staged: Any, rows: Any, npz: Any
) -> None:
    staged("1.0.0", baseline=npz(features=rows(999)))
    body = {"reason": "in a hurry"}
    refused = client.post(f"{PATH}/1.0.0/promote", json=body)
    assert _problem(refused) == (409, "not_fit_for_production")
    assert "999" in refused.json()["detail"] and "1000" in refused.json()["detail"]
    approver = _as(client, "approver")
    assert approver.post(f"{PATH}/1.0.0/promote", json=body | {"force": True}).status_code == 403
    assert client.get(f"{PATH}/1.0.0").json()["stage"] == "staging"
    assert client.post(f"{PATH}/1.0.0/promote", json=body | {"force": True}).status_code == 200
    with bench.database.reading() as session:
        kept = next(item for item in audit.newest(session) if item.action == "release.promote")
    assert kept.skipped_safeguards == ["gate data-sanity: baseline_rows"]


@pytest.mark.parametrize(
    ("environment", "moves", "code"),
    [
        ("production", (), "release_not_production"),
        ("production", ("promote",), None),
        ("production", ("promote", "archive"), "release_archived"),
        ("dev", (), None),
        ("staging", (), None),
        ("dev", ("archive",), "release_archived"),
    ],
)
def test_release_where_it_must_not_go(
    bench: Any, staged: Any, environment: str, moves: tuple[str, ...], code: str | None
) -> None:
    staged("1.0.0")
    for name in moves:
        _move(bench, "1.0.0", name)
    with bench.database.reading() as session:
        session.info[audit.ENVIRONMENT] = environment
        assert _refused(session) == code


def _refused(session: Session) -> str | None:
    view = service.staged_release(session, "detector", "1.0.0")
    try:
        lifecycle.check_may_roll_out(session, view)
    except Conflict as error:
        return error.code
    return None


def test_last_three_in_production_are_kept_ready(bench: Any, staged: Any) -> None:
    versions = ["1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0"]
    staged(*versions)
    # By when they were promoted, not by when they were pushed.
    for moment, version in enumerate(["1.1.0", "1.0.0", "1.2.0", "1.3.0"]):
        _move(bench, version, "promote", 5_000 + moment)
    with bench.database.reading() as session:
        kept = lifecycle.kept_ready(session)["detector"]
    assert kept == [bench.record(version).digest for version in ("1.3.0", "1.2.0", "1.0.0")]
    _move(bench, "1.2.0", "archive")
    with bench.database.reading() as session:
        kept = lifecycle.kept_ready(session)["detector"]
    assert kept == [bench.record(version).digest for version in ("1.3.0", "1.0.0", "1.1.0")]
    # What is archived is hidden from rollouts; its files and what devices may know of it stay.
    archived = bench.record("1.2.0")
    assert archived.stage is Stage.ARCHIVED
    assert bench.new_staging().store.find(f"manifests/detector/{archived.digest}.json") is not None

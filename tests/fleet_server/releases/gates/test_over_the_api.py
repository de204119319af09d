"""Guards from gates that hold in the code and not in the API: who may open them, what is told."""

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fleet_server.access import service as access
from fleet_server.access.permissions import ROLES
from fleet_server.access.users import User
from fleet_server.audit import service as audit

PATH = "/v1/models/detector/releases/1.0.0"


@pytest.fixture
def still(rows: Any, npz: Any) -> bytes:
    """A baseline with an input that never changes."""
    found = rows()
    found[:, 3] = 0.5
    data: bytes = npz(features=found)
    return data


def test_refusal_names_gate_figure_and_bound(
    bench: Any, client: Any, push: Callable[..., Any], still: bytes
) -> None:
    assert push(baseline=still).status_code == 202
    bench.settled()
    release = client.get(PATH).json()
    assert release["state"] == "refused"
    assert release["problem"]["gate"] == "data-sanity"
    assert (release["problem"]["figure"], release["problem"]["bound"]) == (1, 0)
    assert release["problem"]["advice"]
    gates = {step["name"]: step["gates"] for step in release["steps"]}["gates"]
    failed = [row for row in gates if not row["passed"]]
    assert [row["name"] for row in failed] == ["baseline_constant_inputs"]
    assert bench.stored() == []


def test_override_is_in_figures_and_audit(
    bench: Any, client: Any, push: Callable[..., Any], still: bytes
) -> None:
    reasons = {"data-sanity": "the sensor is not built in yet"}
    assert push(baseline=still, overrides=json.dumps(reasons)).status_code == 202
    assert bench.settled().state == "staged"
    gates = {step["name"]: step["gates"] for step in client.get(PATH).json()["steps"]}["gates"]
    overridden = [row for row in gates if row["overridden"]]
    assert [(row["passed"], row["overridden"]) for row in overridden] == [
        (False, reasons["data-sanity"])
    ]
    with bench.database.reading() as session:
        entries = audit.newest(session)
    pushed = next(entry for entry in entries if entry.action == "release.push")
    assert pushed.skipped_safeguards == ["data-sanity"]
    assert pushed.detail["gates_relaxed"] == reasons


@pytest.mark.parametrize(
    "given",
    [
        {"overrides": '{"metric": "why not"}'},
        {"approve_schema": "why not"},
        {"agreement": "0.98"},
        {"metric_margin": "-0.1"},
        {"metric": "auc", "metric_margin": "0"},
        {"slice_margin": "0.5"},
        {"slice_margin": "0.01", "metric": "mae", "output_kind": "values"},
    ],
)
def test_gate_is_opened_by_who_may_not(
    bench: Any,
    client: Any,
    push: Callable[..., Any],
    rows: Any,
    npz: Any,
    given: dict[str, str],
) -> None:
    evaluation = npz(features=rows(), label=rows().argmax(axis=1))
    wanted = access.Wanted("otto", ["operator"], [], [], valid_ms=3_600_000)
    admin = User("ann", ("admin",), ROLES["admin"])
    with bench.database.transaction() as session:
        made = access.create_token(
            session,
            ROLES,
            wanted,
            by=admin,
            random_bytes=os.urandom,
            now_ms=bench.clock.now_ms(),
        )
    client.headers["Authorization"] = f"Bearer {made.token}"
    response = push(evaluation=evaluation, **given)
    assert response.status_code == 403, response.text
    assert response.json()["type"].endswith(":missing_permission")
    assert list((bench.folder / "incoming").iterdir()) == []
    assert push(evaluation=evaluation, metric_margin="0.01").status_code == 202
    assert bench.settled().state == "staged"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"overrides": '{"determinism": "it will do"}'}, "not_overridable"),
        ({"overrides": '{"parity": "it will do"}'}, "not_overridable"),
        ({"overrides": '{"examination": "it will do"}'}, "not_overridable"),
        ({"overrides": '{"metric": ""}'}, "bad_field"),
        ({"overrides": '["metric"]'}, "bad_field"),
        ({"overrides": "{"}, "bad_field"),
        ({"overrides": '{"metric": "a\\u001b[2J"}'}, "bad_field"),
        ({"approve_schema": "a\x1b[2J"}, "bad_field"),
        ({"metric_margin": "0"}, "missing_file"),
        ({"metric": "beauty"}, "bad_field"),
        ({"metric_margin": "nan"}, "bad_field"),
        ({"metric_margin": "inf"}, "bad_field"),
        ({"slice_margin": "-1"}, "bad_field"),
        ({"metric": "auc"}, "missing_file"),
        ({"evaluated": "true"}, "bad_field"),
        ({"evaluation": b"no archive"}, "not_npz"),
    ],
)
def test_fields_that_cannot_be_taken(
    bench: Any, push: Callable[..., Any], given: dict[str, Any], code: str
) -> None:
    response = push(**given)
    assert response.status_code == 422, response.text
    assert response.json()["type"].endswith(f":{code}"), response.text
    assert list((bench.folder / "incoming").iterdir()) == []


def test_production_is_the_newest_release_that_is_not_revoked(
    bench: Any, client: Any, push: Callable[..., Any], rows: Any, npz: Any
) -> None:
    evaluation = npz(features=rows(300), label=np.arange(300) % 3)
    for version, production in (("1.0.0", None), ("1.1.0", "1.0.0")):
        assert push(version, evaluation=evaluation).status_code == 202
        assert bench.settled(version).state == "staged"
        steps = client.get(f"/v1/models/detector/releases/{version}").json()["steps"]
        figures = {step["name"]: step["figures"] for step in steps}["gates"]
        assert figures["production"] == production
        assert len(figures["evaluation"]) == 64

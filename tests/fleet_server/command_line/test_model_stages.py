"""Guards from a release that cannot be found again, and from a script that takes a no for a yes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fleet_server.command_line import model_compare, release_metadata, staging_outcome
from fleet_server.command_line.output import CommandError
from fleet_server.command_line.staging_outcome import Outcome


class Server:
    """Answers with one state after the other; the last one stays."""

    def __init__(self, *states: str) -> None:
        self.states = list(states)

    def get(self, path: str) -> Any:
        assert path == "/v1/models/detector/releases/1.0.0"
        return _release(self.states.pop(0) if len(self.states) > 1 else self.states[0])


def _release(state: str, **given: Any) -> Any:
    whole = {"model": "detector", "version": "1.0.0", "state": state, "steps_to_do": ["parity"]}
    return whole | given


@pytest.mark.parametrize(
    ("states", "timeout_s", "code"),
    [
        (("staging", "staged"), 600, 0),
        (("staging", "refused"), 600, 3),
        (("staging",), 0.6, 4),
        (("unsigned",), 600, 5),
        (("revoked",), 600, 1),
    ],
)
def test_exit_code_of_a_push_that_was_waited_for(
    states: tuple[str, ...], timeout_s: float, code: int
) -> None:
    console = Console(file=io.StringIO())
    server: Any = Server(*states)
    found = staging_outcome.follow(server, _release("staging"), console, timeout_s)
    assert staging_outcome.outcome(found) == code
    assert Outcome(code) in set(Outcome)


def test_option_goes_over_the_file_and_tags_come_together(tmp_path: Path) -> None:
    file = tmp_path / "metadata.json"
    file.write_text('{"licence": "MIT", "owner": "Bo", "tags": ["a"], "metrics": {"auc": 0.9}}')
    said = release_metadata.gather(
        file, ["b"], {"run_id": "r1", "owner": "Cy"}, licence="Apache-2.0", owner=""
    )
    assert said == {
        "run_id": "r1",
        "owner": "Bo",
        "licence": "Apache-2.0",
        "metrics": {"auc": 0.9},
        "tags": ["a", "b"],
    }


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "[" * 20_000, " " * 70_000])
def test_metadata_file_that_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "metadata.json"
    file.write_text(text)
    with pytest.raises(CommandError):
        release_metadata.gather(file, None)


def test_comparison_of_releases_that_have_little_in_common() -> None:
    bare = {"source_bytes": 10, "pushed_by": "ann", "problem": None, "manifest": None}
    first = _release("staged", stage="production", steps=[], metadata={"tags": ["a"]}, **bare)
    judged = [{"gate": "metric", "name": "accuracy", "figure": 0.96}]
    steps = [{"name": "parity", "took_ms": 1, "figures": {"agreement": 0.99}, "gates": judged}]
    second = _release("refused", stage="staging", steps=steps, metadata={}, **bare)
    second["problem"], second["source_bytes"] = {"gate": "parity"}, 15
    facts = [model_compare.facts(item) for item in (first, second)]
    rows = {row["fact"]: row for row in model_compare.compare(*facts)}
    assert rows["parity: agreement"]["a"] is None
    assert rows["metric: accuracy"]["b"] == 0.96
    assert rows["source_bytes"]["change"] == "+50.0%"
    assert (rows["tags"]["b"], rows["tags"]["same"]) == (None, False)
    assert rows["pushed_by"]["same"]
    assert rows["refused by"]["b"] == "parity"


@pytest.mark.slow
def test_a_release_is_found_promoted_and_compared(
    server: Any, edgefleet: Callable[..., Any], classifier_files: dict[str, Path], tmp_path: Path
) -> None:
    model = ["--url", server.settings.url, "model"]
    rows = str(classifier_files["rows"])
    file = tmp_path / "metadata.json"
    file.write_text('{"metrics": {"auc": 0.9}, "training_ms": 91000, "tags": ["vision"]}')
    push = [*model, "push", "detector", str(classifier_files["model"])]
    push += ["--calibration", rows, "--golden", rows, "--wait"]
    said = edgefleet(*push, "--version", "1.0.0", "--metadata", str(file), "--tag", "first")
    assert said.code == 0, said.err
    assert "tags       vision, first" in said.out
    assert "training   91 s" in said.out
    assert edgefleet(*push, "--version", "1.1.0", "--licence", "MIT").code == 0
    said = edgefleet(*push, "--version", "1.2.0", "--licence", "none; really")
    assert said.code == 1 and "not of its form" in said.err
    listed = edgefleet(*model, "list", "detector", "--tag", "first").out
    assert "1.0.0" in listed and "1.1.0" not in listed
    assert "Nothing fits." in edgefleet(*model, "list", "--search", "nobody").out
    assert edgefleet(*model, "promote", "detector", "1.0.0").code == 2
    promote = [*model, "promote", "detector", "1.0.0", "--reason", "it is good"]
    said = edgefleet(*promote)
    assert said.code == 1 and "has 60 rows, and production needs 1000" in said.err
    said = edgefleet(*promote, "--force")
    assert (said.code, said.out) == (0, "detector 1.0.0 is in production.\n")
    assert "1.0.0" in edgefleet(*model, "list", "--stage", "production").out
    said = edgefleet(*model, "compare", "detector", "1.0.0", "1.1.0")
    assert "licence" in said.out and "metrics: auc" in said.out and "pushed_by" not in said.out
    said = edgefleet(*model, "compare", "detector", "1.0.0", "1.1.0", "--all", "--json")
    start = said.out.index("{")
    facts = json.JSONDecoder().raw_decode(said.out, start)[0]["facts"]
    assert {"pushed_by", "tool: onnxruntime", "parity: agreement"} <= {f["fact"] for f in facts}
    said = edgefleet(*model, "archive", "detector", "1.0.0", "--reason", "old")
    assert said.code == 0
    said = edgefleet("--url", server.settings.url, "rollout", "start", "detector", "1.0.0")
    assert said.code == 1 and "archived" in said.err


@pytest.mark.slow
def test_production_fleet_takes_only_what_was_promoted(
    start_server: Callable[..., Any],
    edgefleet: Callable[..., Any],
    classifier_files: dict[str, Path],
) -> None:
    server = start_server(environment="production")
    rows = str(classifier_files["rows"])
    push = ["--url", server.settings.url, "model", "push", "detector"]
    push += [str(classifier_files["model"]), "--calibration", rows, "--golden", rows, "--wait"]
    assert edgefleet(*push, "--version", "1.0.0").code == 0
    body = {"model": "detector", "version": "1.0.0", "cohort": "default", "template": "direct"}
    refused = server.client.post("/v1/rollouts", json=body)
    assert refused.status_code == 409, refused.text
    assert refused.json()["type"].endswith(":release_not_production")
    assert "edgefleet model promote detector 1.0.0" in refused.json()["advice"]
    path = "/v1/models/detector/releases/1.0.0"
    assert (
        server.client.post(f"{path}/promote", json={"reason": "good", "force": True}).status_code
        == 200
    )
    draft = server.client.post("/v1/rollouts", json=body)
    assert draft.status_code == 201, draft.text
    # A draft that was made before its release was archived does not start.
    assert server.client.post(f"{path}/archive", json={"reason": "old"}).status_code == 200
    late = server.client.post(f"/v1/rollouts/{draft.json()['id']}/start")
    assert late.status_code == 409
    assert late.json()["type"].endswith(":release_archived")

"""Guards from metadata that is lost on the way, unbounded, or a command in disguise."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from fleet_contract import codec
from fleet_server.provenance import statement
from fleet_server.releases.metadata import Metadata, stated

WHOLE: dict[str, Any] = {
    "notes": {"by": "Ann"},
    "datasets": {"train": "s3://data/train.dvc", "test": "https://example.org/repo/data/test.dvc"},
    "dataset_hash": "md5:22a1a2931c8370d3aeedd7183606fd7f.dir",
    "hyperparameters": {"depth": 4, "rate": 0.01, "loss": "log", "early": True},
    "metrics": {"accuracy": 0.97, "val/auc": 0.99},
    "git_commit": "4f1c0c8a9be24d0e4f1c0c8a9be24d0e4f1c0c8a",
    "training_ms": 91_000,
    "tags": ["vision", "team:edge"],
    "licence": "Apache-2.0 WITH LLVM-exception",
    "owner": "Ann Example <ann@example.org>",
    "environment_lock": "ab" * 32,
    "run_id": "0a1b2c",
    "imported_from": "mlflow:models:/digits/3",
}


def test_metadata_reaches_everybody_who_asks(bench: Any, client: Any, push: Any) -> None:
    assert push(metadata=json.dumps(WHOLE)).status_code == 202
    assert bench.settled().state == "staged"
    release = client.get("/v1/models/detector/releases/1.0.0").json()
    assert release["metadata"] == WHOLE
    lineage = release["manifest"]["lineage"]
    for name in ("datasets", "environment_lock", "git_commit", "dataset_hash", "run_id"):
        assert lineage[name] == WHOLE[name]
    report = client.get("/v1/models/detector/releases/1.0.0/report").json()
    assert report["provenance"]["metadata"]["metrics"] == WHOLE["metrics"]
    assert report["stage"] == "staging"
    sealed = client.get("/v1/models/detector/releases/1.0.0/provenance").json()
    assert sealed["findings"] == []
    told = statement.read_unproven(sealed["envelope"].encode())
    parameters = told.predicate.build_definition.external_parameters
    assert parameters["git_commit"] == WHOLE["git_commit"]
    assert parameters["metadata_sha256"] == stated(_read(WHOLE))["metadata_sha256"]


def test_statement_of_a_push_that_says_nothing() -> None:
    assert stated(Metadata()) == {}
    assert set(stated(_read({"tags": ["a"]}))) == {"metadata_sha256"}


def test_any_change_of_the_metadata_changes_what_is_stated() -> None:
    digests = {stated(_read(WHOLE))["metadata_sha256"]}
    for name in WHOLE:
        less = {key: value for key, value in WHOLE.items() if key != name}
        digests.add(stated(_read(less))["metadata_sha256"])
    assert len(digests) == len(WHOLE) + 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"tags": ["a b"]},
        {"tags": ["x"] * 33},
        {"licence": "free; as in beer"},
        {"licence": "MIT and Apache-2.0"},
        {"owner": "ann\u001b[2J"},
        {"git_commit": "HEAD"},
        {"git_commit": "--upload-pack"},
        {"environment_lock": "ab"},
        {"training_ms": -1},
        {"training_ms": 1.5},
        {"hyperparameters": {"a": [1]}},
        {"hyperparameters": {"a\nb": 1}},
        {"hyperparameters": {"a": "x" * 501}},
        {"hyperparameters": {"a": 10**30}},
        {"hyperparameters": {str(i): i for i in range(201)}},
        {"metrics": {"auc": "0.9"}},
        {"metrics": {"auc": None}},
        {"dataset_hash": "a b"},
        {"run_id": "../1"},
        {"imported_from": "mlflow:\u0007"},
    ],
)
def test_statement_that_is_not_of_its_form(push: Any, wrong: dict[str, Any]) -> None:
    response = push(metadata=json.dumps(wrong))
    assert response.status_code == 422
    assert response.json()["type"].endswith(":bad_field"), response.text


@pytest.mark.parametrize("uri", ["file:///etc/passwd", "s3://b/../x", "https://u:p@example.org/x"])
def test_data_set_where_no_location_may_lie(push: Any, uri: str) -> None:
    response = push(metadata=json.dumps({"datasets": {"train": uri}}))
    assert response.status_code == 422
    problem = response.json()
    assert problem["type"].endswith(":bad_location"), response.text
    # Which one it is, of perhaps twenty, and what may be written: but not what it was.
    assert "data set 'train'" in problem["detail"] and "s3://" in problem["advice"]
    assert "u:p@" not in response.text


def test_releases_by_tag_stage_and_word(bench: Any, client: Any, push: Any) -> None:
    for version, said in (("1.0.0", WHOLE), ("1.1.0", {"tags": ["audio"], "owner": "Bo"})):
        assert push(version, metadata=json.dumps(said)).status_code == 202
        bench.settled(version)
    path = "/v1/models/detector/releases"
    client.post(f"{path}/1.0.0/promote", json={"reason": "x", "force": True})
    for query, versions in (
        ("", ["1.1.0", "1.0.0"]),
        ("?tag=vision", ["1.0.0"]),
        ("?tag=vis", []),
        ("?search=ANN%20EX", ["1.0.0"]),
        ("?search=4f1c0c8", ["1.0.0"]),
        ("?search=detector", ["1.1.0", "1.0.0"]),
        ("?stage=production", ["1.0.0"]),
        ("?stage=staging", ["1.1.0"]),
        ("?stage=staging&tag=vision", []),
    ):
        found = client.get(path + query).json()["releases"]
        assert [item["version"] for item in found] == versions, query
    (model,) = client.get("/v1/models?tag=audio").json()["models"]
    assert (model["releases"], model["newest_staged"], model["tags"]) == (1, "1.1.0", ["audio"])
    assert client.get("/v1/models?search=nobody").json()["models"] == []
    assert client.get("/v1/models?stage=live").status_code == 422


def _read(given: dict[str, Any]) -> Metadata:
    return msgspec.json.decode(codec.encode_json(given), type=Metadata)

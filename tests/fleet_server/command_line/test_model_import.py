"""Guards from an import that was only ever tried against an imagined MLflow: this one is real."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet_server.provenance import statement

pytestmark = [pytest.mark.slow, pytest.mark.mlflow]

COMMIT = "4f1c0c8a9be24d0e4f1c0c8a9be24d0e4f1c0c8a"
# As a data scientist's script does it; by default MLflow lays an ONNX model's weights beside it.
TRAINING = f"""
import json, mlflow, numpy, onnx
from onnx import TensorProto, helper, numpy_helper

columns = 64
weights = (numpy.eye(columns)[:, :8] * 3 + 0.1).astype("float32")
graph = helper.make_graph(
    [helper.make_node("MatMul", ["features", "weight"], ["logits"])], "classifier",
    [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", columns])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 8])],
    initializer=[numpy_helper.from_array(weights, "weight")],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
rows = numpy.eye(columns, dtype="float32")[numpy.arange(60) % 8]
for role in ("calibration", "golden"):
    numpy.savez(role + ".npz", features=rows)
numpy.savez("evaluation.npz", features=rows, label=numpy.arange(60) % 8)
mlflow.set_experiment("digits")
with mlflow.start_run(tags={{"mlflow.source.git.commit": "{COMMIT}", "team": "edge"}}) as run:
    mlflow.log_params({{"depth": 4, "loss": "log"}})
    mlflow.log_metric("accuracy", 0.5, step=1)
    mlflow.log_metric("accuracy", 0.97, step=2)
    mlflow.log_metric("hopeless", float("nan"))
    data = mlflow.data.from_numpy(rows, source="s3://data/train", name="train")
    mlflow.log_input(data, context="training")
    mlflow.log_artifact("calibration.npz")
    mlflow.log_artifact("golden.npz")
    mlflow.log_artifact("evaluation.npz")
    logged = mlflow.onnx.log_model(
        model, name="net", registered_model_name="digits", pip_requirements=["onnx"]
    )
client = mlflow.MlflowClient()
client.set_registered_model_alias("digits", "champion", "1")
client.set_model_version_tag("digits", "1", "license", "Apache-2.0")
print(json.dumps({{"run": run.info.run_id, "digest": data.digest}}))
"""


def test_import_from_a_real_mlflow_server(
    server: Any, edgefleet: Callable[..., Any], mlflow_server: Any, tmp_path: Path
) -> None:
    trained = mlflow_server.run(TRAINING)
    artifacts = mlflow_server.folder / "artifacts"
    assert list(artifacts.rglob("*.data")), "MLflow keeps weights inside now: nothing is rehearsed"
    model = ["--url", server.settings.url, "model"]
    take = [*model, "import", "--tracking-uri", mlflow_server.url, "--wait"]
    said = edgefleet(
        *(*take, "mlflow:models:/digits@champion", "--version", "1.0.0", "--tag", "ml"),
        *("--metric", "f1", "--classes", "a,b,c,d,e,f,g,h", "--size-budget", "1MiB"),
    )
    assert said.code == 0, said.out + said.err
    assert "digits 1.0.0  staged" in said.out
    release = server.client.get("/v1/models/digits/releases/1.0.0").json()
    known = release["metadata"]
    assert known.pop("classes") == list("abcdefgh")
    judged = [row for step in release["steps"] for row in step["gates"]]
    assert [row["name"] for row in judged if row["gate"] == "metric"] == ["f1"]
    assert known.pop("training_ms") > 0
    assert known == {
        "imported_from": "mlflow:models:/digits/1",
        "run_id": trained["run"],
        "hyperparameters": {"depth": "4", "loss": "log"},
        "metrics": {"accuracy": 0.97},
        "dataset_hash": f"train:{trained['digest']}",
        "datasets": {"train": "s3://data/train"},
        "git_commit": COMMIT,
        "licence": "Apache-2.0",
        "tags": ["team=edge", "ml"],
    }
    assert "1 of the metrics" in said.err
    lineage = release["manifest"]["lineage"]
    for name in ("run_id", "git_commit", "dataset_hash", "imported_from", "datasets"):
        assert lineage[name] == known[name]
    sealed = server.client.get("/v1/models/digits/releases/1.0.0/provenance").json()["envelope"]
    asked = statement.read_unproven(sealed.encode()).predicate.build_definition.external_parameters
    assert (asked["git_commit"], asked["run_id"]) == (COMMIT, trained["run"])
    # By number, with the registry's own version; and by run, which has no name.
    said = edgefleet(*take, "mlflow:models:/digits/1")
    assert said.code == 0, said.out + said.err
    assert "digits 1  staged" in said.out
    by_run = f"mlflow:runs:/{trained['run']}/net"
    assert "--name" in edgefleet(*take, by_run).err
    said = edgefleet(*take, by_run, "--name", "numbers", "--version", "1.0.0", "--json")
    assert said.code == 0, said.out + said.err
    decoded = json.JSONDecoder().raw_decode(said.out, said.out.index("{"))[0]
    assert decoded["metadata"]["imported_from"] == by_run
    # What is not there is said in a sentence.
    for source in ("mlflow:models:/digits/9", "mlflow:models:/nobody@x", "mlflow:runs:/0/net"):
        said = edgefleet(*take, source)
        assert said.code == 1 and "knows nothing of this name" in said.err, said.err
    said = edgefleet(*take, f"mlflow:runs:/{trained['run']}/nothing", "--name", "numbers")
    assert said.code == 1 and "no files under nothing" in said.err
    said = edgefleet(*take, "mlflow:models:/digits/1", "--file", "other.onnx")
    assert said.code == 1 and "no file 'other.onnx'" in said.err

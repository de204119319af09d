"""Guards from a registry that answers with too much, with nonsense, or with paths of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet_server.errors import DomainError, Invalid, NotFound, TooLarge
from fleet_server.mlflow import registry
from fleet_server.mlflow.fetching import fetch_examples, fetch_model
from fleet_server.mlflow.references import OfRun, Registered, read_reference
from fleet_server.mlflow.registry import Found, Registry
from fleet_server.releases import limits

FILES = "/api/2.0/mlflow-artifacts/artifacts"


def _registry(answer: Callable[[httpx.Request], httpx.Response]) -> Registry:
    return Registry("http://mlflow", {"transport": httpx.MockTransport(answer)})


def _holding(files: dict[str, bytes]) -> Registry:
    """A registry with one folder of files."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == FILES:
            listed = [{"path": name, "file_size": len(data)} for name, data in files.items()]
            return httpx.Response(200, json={"files": listed})
        name = request.url.path.removeprefix(f"{FILES}/1/m/")
        return httpx.Response(200, content=files[name]) if name in files else httpx.Response(404)

    return _registry(answer)


def _found(folder: str = "1/m") -> Found:
    return Found("mlflow:models:/digits/1", folder, None, None)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("mlflow:models:/digits/3", Registered("digits", version="3")),
        ("mlflow:models:/Digits v2@champion", Registered("Digits v2", alias="champion")),
        ("mlflow:runs:/0a1b/nets/first", OfRun("0a1b", "nets/first")),
    ],
)
def test_reference(text: str, means: Any) -> None:
    assert read_reference(text) == means


@pytest.mark.parametrize(
    "text",
    [
        "",
        "models:/digits/3",
        "mlflow:models:/digits/latest",
        "mlflow:models:/digits/Production",
        "mlflow:models:/digits/0",
        "mlflow:models:/digits/3\n",
        "mlflow:runs:/0a1b/../../secret",
        "mlflow:runs:/0a1b//x",
        "mlflow:runs:/../x",
        "mlflow:s3://bucket/model",
    ],
)
def test_reference_that_names_nothing(text: str) -> None:
    with pytest.raises(Invalid):
        read_reference(text)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (httpx.Response(404), "no_such_model"),
        (httpx.Response(401), "mlflow_refuses"),
        (httpx.Response(403), "mlflow_refuses"),
        (httpx.Response(302, headers={"location": "http://elsewhere/"}), "not_mlflow"),
        (httpx.Response(500), "not_mlflow"),
        (httpx.Response(200, content=b"<html>"), "not_mlflow"),
        (httpx.Response(200, content=b"[" * 100_000), "not_mlflow"),
        (httpx.Response(200, content=b" " * (registry.ANSWER_BYTES + 1)), "not_mlflow"),
        (httpx.Response(200, json={"model_version": {"name": 3}}), "not_mlflow"),
    ],
)
def test_answer_that_is_none(answer: httpx.Response, code: str) -> None:
    with _registry(lambda request: answer) as asked, pytest.raises(DomainError) as found:
        asked.find(Registered("digits", version="3"))
    assert found.value.code == code


def test_server_that_is_not_there() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with _registry(answer) as asked, pytest.raises(DomainError) as found:
        asked.files("1/m")
    assert found.value.code == "mlflow_unreachable"


@pytest.mark.parametrize(
    "url", ["", "mlflow", "file:///srv/mlruns", "sqlite:///runs.db", "http://host:port"]
)
def test_tracking_uri_that_is_no_server(url: str) -> None:
    with pytest.raises(Invalid):
        Registry(url, {})


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/1/m/artifacts",
        "file:///srv/mlruns/1",
        "/srv/mlruns/1",
        "mlflow-artifacts://elsewhere/1",
        "mlflow-artifacts:/1/../../x",
    ],
)
def test_files_that_the_registry_does_not_hand_out(uri: str) -> None:
    answers = {
        "model-versions/get": {"model_version": {"name": "digits", "version": "3"}},
        "model-versions/get-download-uri": {"artifact_uri": uri},
    }

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=answers[request.url.path.partition("/mlflow/")[2]])

    with _registry(answer) as asked, pytest.raises(Invalid) as found:
        asked.find(Registered("digits", version="3"))
    assert found.value.code == "artifacts_elsewhere"


@pytest.mark.parametrize("name", ["../x.onnx", "/etc/x.onnx", "a\\b.onnx", ".onnx", "a\x00.onnx"])
def test_file_name_that_is_a_path(name: str, tmp_path: Path) -> None:
    with _holding({name: b"x"}) as asked, pytest.raises(DomainError):
        fetch_model(asked, _found(), "", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [(), ("a.onnx", "b.onnx"), ("model.pkl",)])
def test_folder_that_does_not_say_which_file_is_the_model(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    with _holding(dict.fromkeys(names, b"x")) as asked, pytest.raises(Invalid) as found:
        fetch_model(asked, _found(), "", tmp_path)
    assert found.value.code == "which_model"


def test_named_file_among_several(tmp_path: Path) -> None:
    with _holding({"a.onnx": b"first", "b.tflite": b"second", "MLmodel": b"flavors:"}) as asked:
        model = fetch_model(asked, _found(), "b.tflite", tmp_path)
        assert (model.name, model.read_bytes()) == ("model.tflite", b"second")
        with pytest.raises(NotFound):
            fetch_model(asked, _found(), "c.onnx", tmp_path)


def test_file_larger_than_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MODEL_BYTES", 100_000)
    with _holding({"model.tflite": bytes(100_001)}) as asked, pytest.raises(TooLarge):
        fetch_model(asked, _found(), "", tmp_path)
    assert list(tmp_path.iterdir()) == []


def _split(folder: Path) -> dict[str, bytes]:
    """A model as MLflow writes it: its weights in a file beside it."""
    weight = np.arange(4096, dtype=np.float32).reshape(64, 64)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "split",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        initializer=[numpy_helper.from_array(weight, "weight")],
    )
    folder.mkdir()
    onnx.save_model(helper.make_model(graph), folder / "model.onnx", save_as_external_data=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_weights_beside_the_model_come_into_it(tmp_path: Path) -> None:
    files = _split(tmp_path / "made") | {"conda.yaml": b"x", "requirements.txt": b"onnx"}
    to = tmp_path / "to"
    to.mkdir()
    with _holding(files) as asked:
        model = fetch_model(asked, _found(), "", to)
    alone = tmp_path / "alone.onnx"
    model.rename(alone)
    (weight,) = onnx.load_model(alone).graph.initializer
    assert numpy_helper.to_array(weight)[63, 63] == 4095


def test_weights_that_are_cut_short(tmp_path: Path) -> None:
    files = {
        name: data[: len(data) // 2] if name.endswith(".data") else data
        for name, data in _split(tmp_path / "made").items()
    }
    assert len(files) == 2
    to = tmp_path / "to"
    to.mkdir()
    with _holding(files) as asked, pytest.raises(Invalid) as found:
        fetch_model(asked, _found(), "", to)
    assert found.value.code == "weights_elsewhere"


def test_examples_beside_the_model(tmp_path: Path) -> None:
    with _holding({"golden.npz": b"g", "model.onnx": b"m", "other.npz": b"o"}) as asked:
        here = fetch_examples(asked, _found(), tmp_path)
    assert {role: path.read_bytes() for role, path in here.items()} == {"golden": b"g"}
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == '["golden.npz"]'

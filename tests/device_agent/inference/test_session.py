"""Only what was hashed is loaded, and only what was promised is run."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from device_agent.errors import InputRejected, StepFailed
from device_agent.inference.artifact_file import read_verified
from device_agent.inference.capabilities import capabilities, tiny_model
from device_agent.inference.session import OnnxRuntime, OnnxSession
from fleet_contract.errors import Reason
from fleet_contract.manifest import FileRef, Manifest, TensorSpec


def load(release: Any) -> OnnxSession:
    return OnnxRuntime().load(release.path, release.manifest, release.variant)


def test_session_answers_what_onnxruntime_answers(workshop: Any) -> None:
    release = workshop.good()
    session = load(release)
    bare = onnxruntime.InferenceSession(str(release.path), providers=["CPUExecutionProvider"])
    outputs = session.run({"x": workshop.rows})
    assert np.array_equal(outputs["y"], bare.run(["y"], {"x": workshop.rows})[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:-1], Reason.WRONG_SIZE),
        (lambda data: data + b"\0", Reason.WRONG_SIZE),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], Reason.WRONG_HASH),
    ],
    ids=["truncated", "appended", "one bit"],
)
def test_file_changed_on_disk(workshop: Any, change: Any, reason: Reason) -> None:
    release = workshop.good()
    release.path.write_bytes(change(release.path.read_bytes()))
    with pytest.raises(StepFailed) as caught:
        load(release)
    assert caught.value.reason is reason


def test_pipe_in_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StepFailed) as caught:
        read_verified(tmp_path / "pipe", FileRef("0" * 64, 0))
    assert caught.value.reason is Reason.DOWNLOAD_FAILED


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StepFailed) as caught:
        read_verified(tmp_path / "nothing", FileRef("0" * 64, 1))
    assert caught.value.reason is Reason.DOWNLOAD_FAILED


def test_external_data_in_the_working_folder_is_not_found(
    workshop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_from_string(workshop.linear(width=400))
    onnx.save(
        model,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="weights",
        size_threshold=64,
    )
    monkeypatch.chdir(tmp_path)
    data = (tmp_path / "m.onnx").read_bytes()
    onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])  # the runtime takes it
    with pytest.raises(StepFailed) as caught:
        OnnxSession(
            data,
            inputs=[TensorSpec("x", "float32", [None, 400])],
            outputs=[TensorSpec("y", "float32", [None, 3])],
        )
    assert caught.value.reason is Reason.BROKEN_MODEL


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([TensorSpec("x", "float64", [None, 4])], [TensorSpec("y", "float32", [None, 3])]),
        ([TensorSpec("x", "float32", [None, 4, 1])], [TensorSpec("y", "float32", [None, 3])]),
        ([TensorSpec("z", "float32", [None, 4])], [TensorSpec("y", "float32", [None, 3])]),
        ([TensorSpec("x", "float32", [None, 4])], [TensorSpec("y", "int64", [None, 3])]),
        ([TensorSpec("x", "float32", [None, 4])], [TensorSpec("q", "float32", [None, 3])]),
        ([TensorSpec("x", "no type", [None, 4])], [TensorSpec("y", "float32", [None, 3])]),
        ([], [TensorSpec("y", "float32", [None, 3])]),
    ],
)
def test_model_that_is_not_as_its_manifest_says(
    workshop: Any, inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> None:
    with pytest.raises(StepFailed) as caught:
        OnnxSession(workshop.linear(), inputs=inputs, outputs=outputs)
    assert caught.value.reason is Reason.BROKEN_MODEL


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({}, "missing"),
        ({"x": [[1.0, 2.0, 3.0, 4.0]]}, "no numpy array"),
        ({"x": np.zeros((2, 4))}, "float64"),
        ({"x": np.zeros((2, 4), ">f4")}, ">f4"),
        ({"x": np.zeros((2, 5), np.float32)}, "[2, 5]"),
        ({"x": np.zeros(4, np.float32)}, "[4]"),
        ({"x": np.zeros((2, 4), np.float32), "extra": np.zeros(1)}, "extra"),
    ],
)
def test_wrong_inputs_are_named_and_not_converted(
    workshop: Any, inputs: dict[str, Any], told: str
) -> None:
    session = load(workshop.good())
    with pytest.raises(InputRejected) as caught:
        session.check(inputs)
    assert told in str(caught.value)


def test_capabilities_are_those_that_models_meet() -> None:
    found = capabilities()
    assert found.runtimes == {
        "onnxruntime": onnxruntime.__version__,
        "litert": metadata.version("ai-edge-litert"),
    }
    assert found.memory_bytes > 2**28
    assert found.numpy == np.__version__

    def loads(opset: int, ir_version: int) -> bool:
        tensor = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
        graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [tensor], [other])
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
        )
        try:
            OnnxSession(
                model.SerializeToString(),
                inputs=[TensorSpec("x", "float32", [1])],
                outputs=[TensorSpec("y", "float32", [1])],
            )
        except StepFailed:
            return False
        return True

    assert loads(found.max_opset, found.max_ir_version)
    assert not loads(found.max_opset + 1, found.max_ir_version)
    assert not loads(found.max_opset, found.max_ir_version + 1)


def test_tiny_model_is_a_valid_one() -> None:
    model = onnx.load_from_string(tiny_model(opset=13, ir_version=8))
    onnx.checker.check_model(model, full_check=True)


def test_runtime_that_fails_at_the_first_inference_is_not_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a module compiled against another numpy")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    assert "onnxruntime" not in capabilities().runtimes


def test_any_number_of_sessions_adds_no_threads(workshop: Any) -> None:
    release: Any = workshop.good()
    manifest: Manifest = release.manifest
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("no /proc here")
    first = load(release)
    before = {task.name for task in tasks.iterdir()}
    sessions = [OnnxRuntime().load(release.path, manifest, release.variant) for _ in range(4)]
    for session in (first, *sessions):
        session.run({"x": workshop.rows})
    # Others of this process may end meanwhile.
    assert {task.name for task in tasks.iterdir()} <= before

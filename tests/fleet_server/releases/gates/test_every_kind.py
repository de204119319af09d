"""Guards from gates that only models of one kind can pass: each kind goes through all of them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet_contract.manifest import Runtime, TensorSpec
from fleet_server.releases.gates import table
from fleet_server.releases.gates.exercised import Exercised
from fleet_server.releases.laboratory.laboratory import lay_out
from fleet_server.releases.laboratory.tasks import Exercise
from fleet_server.releases.states import OutputKind, Refusal
from tests import toy_tflite

HIDDEN = 16_000
"""Above the size from which a model is searched for."""


def _perceptron() -> bytes:
    """Four columns, one hidden layer, three classes: it passes NaN on, as such models do."""
    spread = np.zeros((4, HIDDEN), np.float32)
    spread[:, :4] = np.eye(4)
    spread += np.random.default_rng(3).normal(size=spread.shape).astype(np.float32) * 0.001
    back = np.zeros((HIDDEN, 3), np.float32)
    back[:4] = np.eye(4)[:, :3] * 3 + 0.1
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "spread"], ["hidden"]),
            helper.make_node("Tanh", ["hidden"], ["bent"]),
            helper.make_node("MatMul", ["bent", "back"], ["logits"]),
        ],
        "perceptron",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        initializer=[
            numpy_helper.from_array(spread, "spread"),
            numpy_helper.from_array(back, "back"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return model.SerializeToString()


def _twice(stage: Any, **given: Any) -> dict[str, Any]:
    """Stage a first release and one that is compared with it; return what the gates found last."""
    stage(**given)
    found: dict[str, Any] = stage("1.1.0", **given)
    assert all(result.passed and not result.overridden for result in found.values()), found
    assert {"latency_us", "memory_bytes"} <= set(found), "not compared with production"
    return found


@pytest.mark.slow
def test_float_perceptron(stage: Any) -> None:
    found = _twice(stage, model=_perceptron())
    assert found["finite_missing"].bound < 1
    assert "applications must not send any" in found["finite_missing"].note


@pytest.mark.parametrize("hidden", [0, pytest.param(HIDDEN, marks=pytest.mark.slow)])
def test_tflite(stage: Any, hidden: int) -> None:
    model = toy_tflite.classifier(hidden=hidden)
    found = _twice(stage, model=model, output_kind="probabilities")
    assert stage.production.variants[0].runtime is Runtime.LITERT
    assert found["finite_missing"].figure >= found["finite_missing"].bound
    assert found["flip_rate"].figure == 0


def test_tflite_of_integers_from_input_to_output(stage: Any, rows: Any, npz: Any) -> None:
    sent = npz(features=np.clip(np.round(rows() * 32), -128, 127).astype(np.int8))
    parts = dict.fromkeys(("calibration", "golden", "baseline"), sent)
    found = _twice(stage, model=toy_tflite.integers(), **parts)
    assert [spec.dtype for spec in stage.production.inputs] == ["int8"]
    assert (found["finite_missing"].figure, found["flip_rate"].figure) == (None, None)
    assert (found["finite_out_of_range"].figure, found["finite_corrupted"].figure) == (1.0, 1.0)


@pytest.mark.parametrize("begins", [False, True])
def test_model_with_a_state_and_a_constant(
    stage: Any, recurrent: Any, npz: Any, begins: bool
) -> None:
    """Once with the states that it met, once with rows that all begin a sequence."""
    session = onnxruntime.InferenceSession(recurrent().SerializeToString())
    frames = np.random.default_rng(4).normal(size=(60, 1, 4)).astype(np.float32)
    memory, met = np.zeros((2, 1, 3), np.float32), []
    for frame in frames:
        met.append(np.moveaxis(memory, 1, 0)[0])
        given = {"frame": frame, "memory": memory, "rate": np.array(2, np.int64)}
        memory = np.asarray(session.run(["memory_after"], given)[0])
    states = np.stack(met)
    walk = npz(frame=frames[:, 0], memory=states)
    found = _twice(
        stage,
        model=recurrent().SerializeToString(),
        calibration=walk,
        golden=walk,
        baseline=npz(frame=frames[:, 0], memory=states * 0) if begins else walk,
        output_kind="values",
        interface={
            "shapes": {"memory": [2, "n", 3]},
            "constants": {"rate": 2},
            "states": {"memory": "memory_after"},
        },
    )
    assert stage.production.states == {"memory": "memory_after"}
    allowed = stage.production.golden.differences
    assert set(allowed) == {"score", "memory_after"}, "each has a range of its own"
    assert max(allowed.values()) == stage.production.golden.largest_difference
    assert found["baseline_constant_inputs"].figure == 0


def test_release_that_is_worse_than_its_float_model(
    laboratory: Any, model: Any, given: Any, rows: Any, tmp_path: Path
) -> None:
    """As a rewriting would be that takes the model's own bound away."""
    tanh = helper.make_node("Tanh", ["clean"], ["logits"])
    bounded = onnx.ModelProto.FromString(model(tanh))
    spread = _unbounded(bounded)
    for name, data in (("float", bounded), ("shipped", spread)):
        (tmp_path / name).write_bytes(data.SerializeToString())
    (tmp_path / "inner").mkdir()
    task = Exercise(
        str(tmp_path / "shipped"),
        str(tmp_path / "float"),
        lay_out({"features": rows()}, tmp_path, "rows"),
        [TensorSpec("logits", "float32", [None, 4])],
        OutputKind.LOGITS,
    )
    found = laboratory.do(task, Exercised, gate="robustness", folder=tmp_path / "inner")
    assert (found.missing_finite, found.missing_finite_float) == (0.0, 1.0)
    with pytest.raises(Refusal) as caught:
        table.enforce(table.judge(given(exercise=found), {}))
    problem = caught.value.problem
    assert (problem.code, problem.bound) == ("robustness_failed", 1.0)
    assert "no release may be worse" in problem.detail


def _unbounded(bounded: onnx.ModelProto) -> onnx.ModelProto:
    spread = onnx.ModelProto()
    spread.CopyFrom(bounded)
    spread.graph.node[2].input[0] = "features"
    del spread.graph.node[:2]
    return spread

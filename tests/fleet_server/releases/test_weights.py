"""Guards from stored weights that come back as others, or that every run pays for."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet_server.releases import quantisation, weights
from fleet_server.releases.states import Recipe, Refusal

OPERATORS = ("Conv", "Gemm", "MatMul")


@pytest.fixture
def network() -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    shapes = {"kernel": (16, 4, 5, 5), "dense": (32, 16), "product": (32, 40)}
    # Channels of very different sizes: one scale for all of them would lose the small ones.
    held = [
        numpy_helper.from_array(
            (rng.normal(size=s) * np.logspace(-3, 0, s[0]).reshape(-1, *[1] * (len(s) - 1))).astype(
                np.float32
            ),
            name,
        )
        for name, s in shapes.items()
    ]
    held[2] = numpy_helper.from_array(rng.normal(size=(32, 40)).astype(np.float32), "product")
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], kernel_shape=[5, 5]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "dense"], ["g"], transB=1),
        helper.make_node("MatMul", ["g", "product"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "network",
        [value("x", TensorProto.FLOAT, ["n", 4, 9, 9])],
        [value("y", TensorProto.FLOAT, ["n", 40])],
        initializer=held,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _run(model: onnx.ModelProto) -> Any:
    x = np.random.default_rng(2).normal(size=(3, 4, 9, 9)).astype(np.float32)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize(("bits", "share", "least_db"), [(8, 0.5, 35.0), (16, 0.75, 60.0)])
def test_small_weights_answer_alike(
    network: onnx.ModelProto, bits: int, share: float, least_db: float
) -> None:
    whole, before = _run(network), network.ByteSize()
    assert weights.shrink(network, OPERATORS, bits=bits)
    onnx.checker.check_model(network, full_check=True)
    noise = ((_run(network) - whole) ** 2).sum()
    assert 10 * np.log10((whole**2).sum() / noise) > least_db
    assert network.ByteSize() < before * share


def test_weights_are_unpacked_once(network: onnx.ModelProto, tmp_path: Path) -> None:
    weights.shrink(network, OPERATORS, bits=8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    onnxruntime.InferenceSession(network.SerializeToString(), options)
    kinds = {node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node}
    assert not {"Cast", "Mul", "DequantizeLinear"} & kinds, "each run would pay for them"


def test_model_without_large_weights(tmp_path: Path, classifier: Any) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(classifier().SerializeToString())
    with pytest.raises(Refusal) as caught:
        quantisation.build(path, Recipe.WEIGHTS8, {}, tmp_path)
    assert caught.value.problem.code == "not_quantisable"

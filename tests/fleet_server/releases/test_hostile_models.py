"""Guards from models that are pushed to harm: each is refused with its gate, and costs a child.

Archives that unpack to too much are in tests/attacks; an endless loop is in the laboratory's tests.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet_server.releases import limits

Fourteen = np.array([14 << 28], np.int64)
"""Elements of float32: 14 GiB."""


def _model(nodes: list[onnx.NodeProto], *weights: onnx.TensorProto, opset: int = 17) -> bytes:
    graph = helper.make_graph(
        nodes,
        "hostile",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])],
        initializer=list(weights),
    )
    opsets = [helper.make_opsetid("", opset)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


def _greedy(operator: str) -> bytes:
    """A few hundred bytes that ask for 14 GiB when they run."""
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    size = numpy_helper.from_array(Fourteen, "size")
    inputs = ["size"] if operator == "ConstantOfShape" else ["seed", "size"]
    return _model(
        [
            # Of the input, so that it is not computed when the model is loaded.
            helper.make_node("ReduceMax", ["features"], ["most"], keepdims=0),
            helper.make_node("Mul", ["most", "one"], ["seed"]),
            helper.make_node(operator, inputs, ["big"]),
            helper.make_node("ReduceMax", ["big"], ["largest"], keepdims=0),
            helper.make_node("Add", ["features", "largest"], ["logits"]),
        ],
        one,
        size,
    )


def _swelling() -> bytes:
    """A loop that doubles what it holds."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go"]),
            helper.make_node("Concat", ["held", "held"], ["more"], axis=0),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.FLOAT, None),
        ],
    )
    return _model(
        [
            helper.make_node("Loop", ["turns", "yes", "features"], ["much"], body=body),
            helper.make_node("ReduceMax", ["much"], ["most"], keepdims=0),
            helper.make_node("Add", ["features", "most"], ["logits"]),
        ],
        numpy_helper.from_array(np.array(40, np.int64), "turns"),
        numpy_helper.from_array(np.array(True), "yes"),
    )


def _boasting() -> bytes:
    """A weight that says that it has 2**40 elements, and has none."""
    weight = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 20, 1 << 20])
    return _model([helper.make_node("Gemm", ["features", "w"], ["logits"])], weight)


def _wide() -> bytes:
    model = onnx.ModelProto.FromString(_model([helper.make_node("Relu", ["features"], ["logits"])]))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 40
    return bytes(model.SerializeToString())


def _custom() -> bytes:
    node = helper.make_node("Steal", ["features"], ["logits"], domain="com.evil")
    model = onnx.ModelProto.FromString(_model([node]))
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    return bytes(model.SerializeToString())


def _random() -> bytes:
    return _model([helper.make_node("RandomNormalLike", ["features"], ["logits"])])


def _unknown() -> bytes:
    return _model([helper.make_node("ImageDecoder", ["features"], ["logits"])])


def _deep() -> bytes:
    """Branches in branches, as far as the format itself can be read."""
    graph = helper.make_graph([], "innermost", [], [])
    for _ in range(limits.NESTING + 2):
        node = helper.make_node("If", ["yes"], ["x"], then_branch=graph)
        graph = helper.make_graph([node], "g", [], [])
    return _model([*graph.node, helper.make_node("Relu", ["features"], ["logits"])])


def _deeper() -> bytes:
    """Messages in messages, until whoever reads them by recursion has no stack left."""
    data = b""
    for _ in range(3_000):
        for field in (b"\x32", b"\x2a", b"\x0a"):  # a graph, in an attribute, in a node
            data = field + _varint(len(data)) + data
    return b"\x3a" + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])


def _relu(opset: int) -> bytes:
    return _model([helper.make_node("Relu", ["features"], ["logits"])], opset=opset)


@pytest.mark.parametrize(
    ("make", "codes", "bound"),
    [
        (lambda: _greedy("ConstantOfShape"), {"too_much_memory"}, limits.CHILD_MEMORY_BYTES),
        (lambda: _greedy("Expand"), {"too_much_memory"}, limits.CHILD_MEMORY_BYTES),
        (lambda: _greedy("Tile"), {"too_much_memory", "does_not_run"}, None),
        # What it asked for last comes on top of what it holds.
        (_swelling, {"too_much_memory"}, limits.CHILD_MEMORY_BYTES),
        (_boasting, {"invalid_model"}, None),
        (_wide, {"tensor_too_large"}, limits.ROW_ELEMENTS),
        (_custom, {"foreign_operators"}, None),
        (_random, {"operator_not_allowed"}, None),
        (_unknown, {"operator_not_allowed"}, None),
        (lambda: _relu(limits.OPSET + 1), {"unsupported_version"}, limits.OPSET),
        (_deep, {"too_deep"}, limits.NESTING),
        (_deeper, {"not_onnx"}, None),
        (lambda: _relu(17)[:-9], {"not_onnx", "invalid_model"}, None),
    ],
)
def test_model_that_is_made_to_harm(
    bench: Any, client: Any, push: Any, make: Callable[[], bytes], codes: set[str], bound: Any
) -> None:
    data = make()
    assert len(data) < 100_000, "it is small: its size is not what is refused"
    assert push(model=data).status_code == 202
    bench.settled()
    release = client.get("/v1/models/detector/releases/1.0.0").json()
    problem = release["problem"]
    assert release["state"] == "refused"
    assert problem["code"] in codes, problem
    assert problem["gate"] in {"examination", "execution"}
    assert problem["detail"]
    assert problem["advice"]
    if bound is not None:
        assert problem["bound"] == bound
        assert problem["figure"] is None or problem["figure"] > bound / 4
    assert bench.stored() == []
    assert push("2.0.0").status_code == 202, "the server goes on"
    assert bench.settled("2.0.0").state == "staged"


@pytest.mark.parametrize("link", ["hard", "symbolic"])
def test_weights_in_a_linked_file(bench: Any, staging: Any, tmp_path: Path, link: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(np.arange(16, dtype=np.float32).tobytes())
    weight = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights")
    data = _model([helper.make_node("Gemm", ["features", "w"], ["logits"])], weight)
    upload = bench.upload(model=data)
    beside = bench.folder / "incoming" / upload.folder / "weights"
    os.link(secret, beside) if link == "hard" else beside.symlink_to(secret)
    bench.register(upload)
    staging.submit("detector", "1.0.0")
    problem = bench.settled().problem
    assert (problem.gate, problem.code) == ("examination", "external_data")
    assert bench.stored() == []
    assert secret.read_bytes(), "what the link points to is as it was"

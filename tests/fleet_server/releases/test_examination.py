"""Guards from ONNX files that reach for other files, ask too much, or are not what they say."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet_server.releases.examination import examine
from fleet_server.releases.states import Refusal

Make = Callable[..., onnx.ModelProto]


def _code(model: onnx.ModelProto | bytes) -> str:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(Refusal) as caught:
        examine(data)
    assert caught.value.problem.gate == "examination"
    assert caught.value.problem.advice
    code: str = caught.value.problem.code
    return code


def _external(tensor: onnx.TensorProto) -> onnx.TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../etc/passwd"
    return tensor


def _hidden() -> onnx.TensorProto:
    return _external(numpy_helper.from_array(np.zeros(3, dtype=np.float32), "hidden"))


def test_sound_model(classifier: Make) -> None:
    found = examine(classifier().SerializeToString())
    assert [(s.name, s.dtype, s.shape) for s in found.inputs] == [
        ("features", "float32", [None, 4])
    ]
    assert [(s.name, s.shape) for s in found.outputs] == [("logits", [None, 3])]
    assert (found.opset, found.ir_version, found.operators) == (17, 8, ["Gemm"])


@pytest.mark.parametrize("data", [b"", b"\x00", b"not a model", b"\x0a\xff\xff\xff\xff\x0f"])
def test_broken_file(data: bytes) -> None:
    assert _code(data) == "not_onnx"


def test_truncated_or_damaged_file(classifier: Make) -> None:
    whole = classifier().SerializeToString()
    for cut in range(0, len(whole), 7):
        try:
            examine(whole[:cut])
        except Refusal as refusal:
            assert refusal.problem.gate == "examination"
    for at in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        try:
            examine(bytes(damaged))
        except Refusal as refusal:
            assert refusal.problem.gate == "examination"


def test_external_data_of_a_weight(classifier: Make) -> None:
    model = classifier()
    _external(model.graph.initializer[0])
    assert _code(model) == "external_data"


def test_external_data_without_its_mark(classifier: Make) -> None:
    model = classifier()
    _external(model.graph.initializer[0]).data_location = TensorProto.DEFAULT
    assert _code(model) == "external_data"


def test_external_data_in_a_constant(classifier: Make) -> None:
    model = classifier()
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=_hidden()))
    assert _code(model) == "external_data"


@pytest.mark.parametrize("place", ["initialiser", "constant", "deeper"])
def test_external_data_in_a_subgraph(classifier: Make, place: str) -> None:
    result = [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [3])]
    if place == "initialiser":
        branch = helper.make_graph([], "branch", [], result, initializer=[_hidden()])
    else:
        constant = helper.make_node("Constant", [], ["hidden"], value=_hidden())
        branch = helper.make_graph([constant], "branch", [], result)
    if place == "deeper":
        inner = helper.make_node("If", ["yes"], ["x"], then_branch=branch, else_branch=branch)
        branch = helper.make_graph([inner], "outer", [], result)
    model = classifier()
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["x"], then_branch=branch, else_branch=branch)
    )
    assert _code(model) == "external_data"


def test_external_data_in_a_sparse_weight(classifier: Make) -> None:
    model = classifier()
    model.graph.sparse_initializer.add().values.CopyFrom(_hidden())
    assert _code(model) == "external_data"


def test_external_data_in_a_sparse_constant(classifier: Make) -> None:
    sparse = onnx.SparseTensorProto()
    sparse.values.CopyFrom(_hidden())
    model = classifier()
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], sparse_value=sparse))
    assert _code(model) == "external_data"


def test_external_data_in_a_function(classifier: Make) -> None:
    model = classifier()
    function = model.functions.add()
    function.name, function.domain = "f", "local"
    function.node.append(helper.make_node("Constant", [], ["c"], value=_hidden()))
    assert _code(model) == "external_data"


def test_external_data_in_training(classifier: Make) -> None:
    model = classifier()
    model.training_info.add().initialization.initializer.append(_hidden())
    assert _code(model) == "external_data"


def test_nesting_that_would_exhaust_the_stack(classifier: Make) -> None:
    graph = helper.make_graph([], "innermost", [], [])
    for _ in range(20):
        node = helper.make_node("If", ["yes"], ["x"], then_branch=graph, else_branch=graph)
        small = helper.make_graph([node], "g", [], [])
        small.node[0].attribute.pop()  # one branch is enough to be deep, two would double it
        graph = small
    model = classifier()
    model.graph.node.extend(graph.node)
    assert _code(model) == "too_deep"


@pytest.mark.parametrize(("opset", "ir_version"), [(27, 8), (12, 8), (0, 8), (17, 14), (17, 2)])
def test_version_that_devices_do_not_run(classifier: Make, opset: int, ir_version: int) -> None:
    model = classifier()
    model.opset_import[0].version = opset
    model.ir_version = ir_version
    assert _code(model) == "unsupported_version"


def test_foreign_operators(classifier: Make) -> None:
    model = classifier()
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    assert _code(model) == "foreign_operators"


def _shape(*dims: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        name = model.graph.input[0].name
        model.graph.input[0].CopyFrom(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims))
        )

    return change


@pytest.mark.parametrize(
    "change", [_shape(1, 4), _shape("batch", "any"), _shape("batch", 0), _shape(), _shape(4)]
)
def test_input_that_is_not_batch_first(
    classifier: Make, change: Callable[[onnx.ModelProto], None]
) -> None:
    model = classifier()
    change(model)
    assert _code(model) == "not_batch_first"


def test_input_of_absurd_size(classifier: Make) -> None:
    model = classifier()
    _shape("batch", 1 << 20, 1 << 20)(model)
    assert _code(model) == "tensor_too_large"


def test_input_that_holds_no_numbers(classifier: Make) -> None:
    for kind in (TensorProto.STRING, TensorProto.BFLOAT16, TensorProto.UNDEFINED):
        model = classifier()
        model.graph.input[0].type.tensor_type.elem_type = kind
        assert _code(model) == "unsupported_type"


@pytest.mark.parametrize("name", ["", "n" * 201, "x\ny", "\x1b[2J", "x\u202ey"])
def test_name_that_a_terminal_would_obey(classifier: Make, name: str) -> None:
    model = classifier(name=name or "x")
    if not name:
        model.graph.input[0].name = model.graph.node[0].input[0] = ""
    assert _code(model) == "bad_name"


def test_output_that_is_there_twice(classifier: Make) -> None:
    model = classifier()
    model.graph.output.append(model.graph.output[0])
    assert _code(model) == "bad_name"


def test_graph_that_does_not_hold_together(classifier: Make) -> None:
    model = classifier()
    model.graph.node[0].input[1] = "nowhere"
    assert _code(model) == "invalid_model"

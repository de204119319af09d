"""Guards from bad inputs that were never tried, or that no sound model could take."""

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet_contract.manifest import TensorSpec
from fleet_server.releases.gates import robustness
from fleet_server.releases.gates.exercised import Exercised
from fleet_server.releases.laboratory import exercise
from fleet_server.releases.states import OutputKind, Refusal

LOGITS = [TensorSpec("logits", "float32", [None, 3])]
CODES = np.arange(60, dtype=np.int64).reshape(20, 3) % 10


def _embedding(kind: int = TensorProto.INT64) -> bytes:
    """The mean of three codes' rows in a table of ten: other codes are an error of the runtime."""
    table = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["codes"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "whole"], ["rows"]),
            helper.make_node("ReduceMean", ["rows"], ["logits"], axes=[1], keepdims=0),
        ],
        "embedding",
        [helper.make_tensor_value_info("codes", kind, ["n", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        initializer=[numpy_helper.from_array(table, "table")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return model.SerializeToString()


def _exercise(
    data: bytes, *given: Any, row_us: float = 10, float_data: bytes | None = None
) -> Exercised:
    clock = itertools.count(0, 2 * row_us)
    return exercise.exercise(
        data, data if float_data is None else float_data, *given, monotonic_us=lambda: next(clock)
    )


def test_slow_model_is_tried_on_fewer_rows(classifier: Any, rows: Any) -> None:
    given = (classifier().SerializeToString(), {"features": rows(60)}, LOGITS, OutputKind.LOGITS)
    assert _exercise(*given, row_us=400_000).rows == 13
    assert _exercise(*given, row_us=60_000_000).rows == exercise.LEAST_ROWS


def test_classifier_that_takes_everything_but_missing_values(classifier: Any, rows: Any) -> None:
    data = classifier().SerializeToString()
    found = _exercise(data, {"features": rows(60)}, LOGITS, OutputKind.LOGITS)
    assert (found.rows, found.missing_finite) == (60, 0.0), "a float model passes NaN on"
    assert found.missing_finite_float == 0.0
    assert (found.out_of_range_finite, found.corrupted_finite, found.flips) == (1.0, 1.0, 0.0)
    assert found.run_difference == found.session_difference == 0.0
    assert found.batch_difference < 1e-5


def test_error_is_a_right_answer_to_a_code_that_does_not_exist() -> None:
    found = _exercise(_embedding(), {"codes": CODES}, LOGITS, OutputKind.LOGITS)
    assert (found.out_of_range_finite, found.corrupted_finite) == (1.0, 1.0)
    assert (found.missing_finite, found.missing_finite_float, found.flips) == (None, None, None)


def test_error_is_no_answer_to_a_number() -> None:
    rows: Any = {"codes": CODES.astype(np.float32)}
    found = _exercise(_embedding(TensorProto.FLOAT), rows, LOGITS, OutputKind.LOGITS)
    assert found.out_of_range_finite == 0.0


def test_same_rows_are_spoilt_alike_each_time(classifier: Any, rows: Any) -> None:
    data, given = classifier().SerializeToString(), {"features": rows(60)}
    found = [_exercise(data, given, LOGITS, OutputKind.VALUES) for _ in range(2)]
    assert found[0] == found[1]
    assert given["features"].tolist() == rows(60).tolist(), "the rows themselves stay"


def _stepped(steps: float) -> bytes:
    """Two thousand values a row, rounded to so many steps in a unit."""
    spread = np.random.default_rng(1).normal(size=(4, 2_000)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "spread"], ["fine"]),
            helper.make_node("Mul", ["fine", "steps"], ["many"]),
            helper.make_node("Round", ["many"], ["whole"]),
            helper.make_node("Div", ["whole", "steps"], ["logits"]),
        ],
        "stepped",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2_000])],
        initializer=[
            numpy_helper.from_array(spread, "spread"),
            numpy_helper.from_array(np.array(steps, np.float32), "steps"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return model.SerializeToString()


@pytest.mark.parametrize(("steps", "few"), [(5.0, True), (0.2, False)])
def test_one_of_many_values_that_goes_a_step_on(steps: float, few: bool) -> None:
    wide = [TensorSpec("logits", "float32", [None, 2_000])]
    given = {"features": np.random.default_rng(2).normal(size=(60, 4)).astype(np.float32)}
    found = _exercise(_stepped(steps), given, wide, OutputKind.VALUES)
    assert found.flips is not None
    assert (found.flips <= robustness.MOST_FLIPS) is few


def test_model_that_fails_on_a_row_alone(rows: Any, classifier: Any) -> None:
    with pytest.raises(Refusal) as caught:
        _exercise(_embedding(), {"codes": CODES + 10}, LOGITS, OutputKind.LOGITS)
    assert caught.value.problem.code == "does_not_run"


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64", "bool"])
def test_bad_values_fit_the_type(dtype: str) -> None:
    array = np.array([[0, 1, 1]] * 6, dtype=dtype)
    random = np.random.default_rng(1)
    for spoil in (exercise._missing, exercise._far, exercise._corrupted):
        found = spoil(array, random)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)

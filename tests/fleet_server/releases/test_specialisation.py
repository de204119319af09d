"""Guards from a rewritten model that computes something else than the one that was pushed."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest

from fleet_server.releases import execution
from fleet_server.releases.examination import examine
from fleet_server.releases.examples import Rows
from fleet_server.releases.interface import Interface, parse
from fleet_server.releases.specialisation import fold, specialise
from fleet_server.releases.states import Refusal

SAID = parse(["memory=2,n,3"], ["rate=2"], ["memory=memory_after"])


def _run(model: onnx.ModelProto, inputs: dict[str, Any]) -> list[np.ndarray]:
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, inputs)
    return [np.asarray(item) for item in found]


def _code(model: onnx.ModelProto, interface: Interface) -> str:
    with pytest.raises(Refusal) as caught:
        examine(model.SerializeToString(), interface)
    assert caught.value.problem.gate == "examination"
    assert caught.value.problem.advice
    return caught.value.problem.code


def test_rewritten_model_answers_as_the_pushed_one(recurrent: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    frame = rng.normal(size=(5, 4)).astype(np.float32)
    memory = rng.normal(size=(2, 5, 3)).astype(np.float32)
    score, after = _run(
        recurrent(), {"frame": frame, "memory": memory, "rate": np.array(2, np.int64)}
    )
    model = recurrent()
    assert specialise(model, SAID)
    for form in (model, fold(model, tmp_path)):
        rows = {"frame": frame, "memory": np.moveaxis(memory, 1, 0)}
        found, found_after = _run(form, rows)
        np.testing.assert_allclose(found, score, rtol=1e-6)
        np.testing.assert_allclose(found_after, np.moveaxis(after, 1, 0), rtol=1e-6)
    assert list(tmp_path.iterdir()) == []


def test_inputs_and_outputs_are_rows_first(recurrent: Any) -> None:
    found = examine(recurrent().SerializeToString(), SAID)
    assert [(s.name, s.shape) for s in found.inputs] == [
        ("frame", [None, 4]),
        ("memory", [None, 2, 3]),
    ]
    assert [s.shape for s in found.outputs] == [[None, 1], [None, 2, 3]]
    assert found.changed


def test_branch_that_a_constant_rules_out_is_gone(recurrent: Any, tmp_path: Path) -> None:
    model = recurrent()
    specialise(model, SAID)
    assert "If" in {node.op_type for node in model.graph.node}
    assert "If" not in {node.op_type for node in fold(model, tmp_path).graph.node}


def test_batch_is_known_by_a_name_that_recurs(recurrent: Any) -> None:
    said = msgspec.structs.replace(SAID, shapes={})
    found = examine(recurrent(batch="batch").SerializeToString(), said)
    assert found.inputs[1].shape == [None, 2, 3]


def test_batch_that_nobody_names(recurrent: Any) -> None:
    said = msgspec.structs.replace(SAID, shapes={})
    assert _code(recurrent(batch=None), said) == "not_batch_first"
    assert _code(recurrent(), Interface()) == "not_batch_first"


def test_model_that_needs_nothing_is_not_touched(classifier: Any) -> None:
    model = classifier()
    before = model.SerializeToString()
    assert not specialise(model, Interface())
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("shapes", "constants", "states", "code"),
    [
        (["memory=2,n,4"], ["rate=2"], [], "shape_differs"),
        (["memory=2,n"], ["rate=2"], [], "shape_differs"),
        (["memory=2,3,3"], ["rate=2"], [], "shape_differs"),
        (["memory=n,n,3"], ["rate=2"], [], "shape_differs"),
        (["memory=n,5,3"], ["rate=2"], [], "shape_differs"),
        (["nothing=n,3"], ["rate=2"], [], "unknown_tensor"),
        (["memory=2,n,3"], ["rates=2"], [], "unknown_tensor"),
        (["memory=2,n,3"], ["rate=2"], ["memory=gone"], "unknown_tensor"),
        (["memory=2,n,3"], ["rate=2"], ["rate=score"], "unknown_tensor"),
        (["memory=2,n,3"], ["rate=2"], ["memory=score"], "shape_differs"),
        (["memory=2,n,3"], ["rate=2"], ["frame=memory_after"], "shape_differs"),
        (["memory=2,n,3"], ["rate=2.5"], [], "bad_constant"),
        (["memory=2,n,3"], ["frame=1"], [], "bad_constant"),
    ],
)
def test_word_of_the_pusher_that_does_not_fit(
    recurrent: Any, shapes: list[str], constants: list[str], states: list[str], code: str
) -> None:
    assert _code(recurrent(), parse(shapes, constants, states)) == code


@pytest.mark.parametrize("text", ["memory", "=2", "memory=", "memory=2;n", "memory=0,n", "m=1e3,n"])
def test_shape_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse([text], [], [])


def test_sequence_hands_states_on(recurrent: Any) -> None:
    model = examine(recurrent().SerializeToString(), SAID)
    rng = np.random.default_rng(2)
    rows: Rows = {
        "frame": rng.normal(size=(6, 4)).astype(np.float32),
        "memory": rng.normal(size=(6, 2, 3)).astype(np.float32),
    }
    data = model.model.SerializeToString()
    found = execution.follow(
        data, rows, model.outputs, "model", states={"memory": "memory_after"}, steps=3
    )
    for first in (0, 3):
        memory: Any = rows["memory"][first : first + 1]
        for row in range(first, first + 3):
            step: Rows = {"frame": rows["frame"][row : row + 1], "memory": memory}
            alone = execution.run(data, step, model.outputs, "model")
            np.testing.assert_allclose(found["score"][row], alone["score"][0], rtol=1e-5)
            memory = alone["memory_after"]

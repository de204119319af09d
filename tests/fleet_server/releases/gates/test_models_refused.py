"""Guards from models that pass parity and fail in use: each gate refuses one."""

from contextlib import closing
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper

from fleet_server.releases.gates import determinism, reference, robustness
from fleet_server.releases.gates.exercised import Exercised
from fleet_server.releases.laboratory.laboratory import Laboratory

TANH = helper.make_node("Tanh", ["clean"], ["logits"])


def _node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def _labels(rows: Any, count: int = 300) -> np.ndarray:
    found: np.ndarray = rows(count).argmax(axis=1)
    return found


def test_sound_model_passes_them_all(stage: Any, rows: Any, npz: Any) -> None:
    columns = {"label": _labels(rows), "slice:site": np.arange(300) % 2}
    golden = rows(seed=6)
    weight = np.eye(4)[:, :3] * 3 + 0.1
    given = {
        "evaluation": npz(features=rows(300), **columns),
        "golden": npz(features=golden, **{"output:logits": golden @ weight}),
        "metadata": {"notes": {"owner": "Ann"}},
    }
    stage.required = ["notes.owner"]
    first = stage(**given)
    assert first["accuracy"].bound is None
    second = stage("1.1.0", **given)
    assert all(result.passed for result in second.values()), second
    assert {result.gate for result in second.values()} == {
        *("reference", "feature-schema", "data-sanity", "metric", "slices", "latency", "memory"),
        *("robustness", "determinism", "metadata"),
    }
    assert second["accuracy"].bound == first["accuracy"].figure
    assert second["difference of logits"].figure < reference.MOST_DIFFERENCE
    figures = {step.name: step.figures for step in stage.steps}["gates"]
    assert (figures["production"], figures["failed"]) == ("1.0.0", 0)


def test_export_that_is_not_the_trained_model(stage: Any, rows: Any, npz: Any) -> None:
    trained = npz(features=rows(), **{"output:logits": np.zeros((100, 3), np.float32)})
    problem = stage.refused(golden=trained)
    assert (problem.gate, problem.bound) == ("reference", reference.MOST_DIFFERENCE)
    assert problem.figure > 1
    assert not stage.results()["difference of logits"].passed, "the figures are kept"


def test_worse_than_production(stage: Any, classifier: Any, rows: Any, npz: Any) -> None:
    evaluation = npz(features=rows(300), label=_labels(rows), **{"slice:site": np.zeros(300, int)})
    stage(evaluation=evaluation)
    # Takes the second class for the first: the same model in int8, and a worse one than before.
    weights = np.eye(4)[:, [1, 0, 2]] * 3 + 0.1
    worse = classifier(weights=weights).SerializeToString()
    problem = stage.refused("1.1.0", model=worse, evaluation=evaluation)
    assert (problem.gate, problem.bound) == ("metric", 1.0)
    assert problem.figure == pytest.approx(1 / 3, abs=0.05)
    reasons = {"metric": "the labels are old"}
    problem = stage.refused("1.1.0", model=worse, evaluation=evaluation, overrides=reasons)
    assert (problem.gate, problem.bound) == ("slices", pytest.approx(0.98))
    reasons["slices"] = "the labels are old"
    found = stage("1.1.0", model=worse, evaluation=evaluation, overrides=reasons)
    assert not found["accuracy"].passed
    assert found["accuracy"].overridden == "the labels are old"


def test_missing_value_that_spreads_is_told_of(stage: Any, model: Any) -> None:
    whole = onnx.ModelProto.FromString(model(TANH))
    whole.graph.node[2].input[0] = "features"
    del whole.graph.node[:2]
    spread = stage(model=whole.SerializeToString())["finite_missing"]
    assert (spread.figure, spread.bound, spread.passed) == (0.0, 0.0, True)
    assert "applications must not send any" in spread.note
    bounded = stage("1.1.0", model=model(TANH))["finite_missing"]
    assert (bounded.figure, bounded.bound) == (1.0, 1.0)
    assert "must not" not in bounded.note


def test_values_far_out_of_range_that_overflow(stage: Any, model: Any) -> None:
    nodes = [_node("Mul", "clean ten", "large"), _node("Exp", "large", "logits")]
    problem = stage.refused(model=model(*nodes, ten=np.array([10], np.float32)))
    assert (problem.gate, problem.bound) == ("robustness", 1.0)
    assert problem.figure < 1
    assert "out of range" in problem.detail


def test_answer_that_noise_decides(stage: Any, model: Any) -> None:
    nodes = [_node("Mul", "clean steep", "large"), _node("Sin", "large", "logits")]
    problem = stage.refused(model=model(*nodes, steep=np.array([5_000], np.float32)))
    assert (problem.gate, problem.bound) == ("robustness", robustness.MOST_FLIPS)
    assert problem.figure > robustness.MOST_FLIPS


class _Unsteady(Laboratory):
    """Finds that a second run gives something else: no operator that is allowed does so."""

    def do(self, task: Any, kind: Any, **options: Any) -> Any:
        found = super().do(task, kind, **options)
        if isinstance(found, Exercised):
            return msgspec.structs.replace(found, run_difference=0.01)
        return found


def test_model_that_answers_at_random(stage: Any, model: Any) -> None:
    drawn = _node("RandomNormalLike", "clean", "noise", scale=0.001)
    whole = model(drawn, _node("Sum", "clean noise", "sum"), _node("Tanh", "sum", "logits"))
    assert stage.refused(model=whole).code == "operator_not_allowed"
    with closing(_Unsteady()) as stage.laboratory:
        problem = stage.refused(model=model(TANH))
    assert (problem.gate, problem.figure, problem.bound) == ("determinism", 0.01, determinism.SAME)


def test_model_that_mixes_the_rows_of_a_batch(stage: Any, model: Any) -> None:
    nodes = [
        _node("ReduceMean", "clean", "mean", axes=[0]),
        _node("Sub", "clean mean", "apart"),
        _node("Tanh", "apart", "logits"),
    ]
    problem = stage.refused(model=model(*nodes))
    assert (problem.gate, problem.bound) == ("determinism", determinism.ALONE)
    assert problem.figure > determinism.ALONE


@pytest.mark.slow
def test_much_slower_and_larger_than_production(stage: Any, model: Any) -> None:
    stage(model=model(TANH))
    nodes = [
        _node("ReduceMax", "clean", "one"),
        _node("Expand", "one shape", "huge"),
        _node("ReduceMin", "huge", "again"),
        _node("Mul", "again zero", "nothing"),
        _node("Sum", "clean nothing", "sum"),
        _node("Tanh", "sum", "logits"),
    ]
    tensors = {"shape": np.array([1536, 4096]), "zero": np.zeros(1, np.float32)}
    heavy = model(*nodes, **tensors)
    # A table of 6 million numbers a call, beside four: no clock is so busy.
    problem = stage.refused("1.1.0", model=heavy)
    assert problem.gate == "latency"
    assert problem.figure > problem.bound
    problem = stage.refused("1.1.0", model=heavy, overrides={"latency": "a larger model is meant"})
    assert problem.gate == "memory"
    assert problem.figure > problem.bound > 16 * 1024**2


def test_baseline_that_is_no_sample(stage: Any, rows: Any, npz: Any) -> None:
    still = rows()
    still[:, 3] = 0.5
    problem = stage.refused(baseline=npz(features=still))
    assert (problem.gate, problem.figure, problem.bound) == ("data-sanity", 1, 0)
    assert "column 3" in problem.detail


def test_required_metadata_that_is_missing(stage: Any) -> None:
    stage.required = ["notes.owner", "sources"]
    problem = stage.refused(metadata={"notes": {"owner": "Ann"}})
    assert (problem.gate, problem.figure, problem.bound) == ("metadata", 1, 0)
    assert "sources" in problem.detail


def test_required_evaluation_rows_that_are_missing(stage: Any, rows: Any, npz: Any) -> None:
    stage.required = ["evaluation_rows"]
    assert stage.refused().gate == "metadata"
    assert stage(evaluation=npz(features=rows(300), label=_labels(rows)))["missing_fields"].passed


@pytest.mark.parametrize("kind", ["probabilities", "values"])
def test_outputs_that_are_read_in_another_way(stage: Any, kind: str) -> None:
    """Devices would go on to read them as before: its features are those of the release before."""
    stage()
    problem = stage.refused("1.1.0", output_kind=kind)
    assert (problem.code, problem.figure, problem.bound) == ("schema_changed", 1, 0)
    assert "--output logits" in problem.detail
    assert [step.name for step in stage.steps] == ["examination"], "known before the search"


def test_schema_that_was_approved_on_too_few_rows(
    stage: Any, classifier: Any, rows: Any, npz: Any
) -> None:
    stage()
    renamed = classifier(name="other").SerializeToString()

    def given(count: int, reason: str = "every application is ready") -> dict[str, Any]:
        data = npz(other=rows(count))
        files = {"calibration": data, "golden": data, "baseline": data}
        return {"model": renamed, "approve_schema": reason, **files}

    problem = stage.refused("2.0.0", **given(1_000, ""))
    assert (problem.code, problem.figure, problem.bound) == ("schema_changed", 1, 0)
    problem = stage.refused("2.0.0", **given(999))
    assert (problem.gate, problem.figure, problem.bound) == ("feature-schema", 999, 1_000)
    evaluation = npz(other=rows(300), label=_labels(rows))
    found = stage("2.0.0", evaluation=evaluation, **given(1_000))
    assert "every application is ready" in found["changes"].note
    assert "has other inputs" in found["accuracy"].note
    assert stage.production.inputs[0].name == "other"
    assert stage.production.features.inputs.names()[0].startswith("other")

"""Guards from releases that passed staging and are not what was pushed."""

import hashlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet_contract import codec, limits
from fleet_contract.manifest import (
    Baseline,
    GoldenFile,
    artifact_path,
    manifest_path,
    read_manifest,
)
from fleet_contract.sketches import features as feature_sketches
from fleet_server.releases import limits as releases_limits
from fleet_server.releases import pipeline
from fleet_server.releases.states import Refusal


def _refusal(call: Callable[[], Any]) -> Any:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value.problem


def test_devices_get_what_was_staged(bench: Any, stage: Any) -> None:
    staged, steps = stage()
    assert [step.name for step in steps] == list(pipeline.STEPS)
    root = bench.folder / "store"
    data = (root / manifest_path("detector", staged.sealed.digest)).read_bytes()
    assert hashlib.sha256(data).hexdigest() == staged.sealed.digest
    manifest = read_manifest(data, model="detector")
    assert manifest == staged.sealed.manifest
    assert (manifest.version, manifest.release_counter) == ("1.0.0", 7)
    for file in (manifest.variants[0].artifact, manifest.golden.file, manifest.baseline):
        held = (root / artifact_path("detector", file.digest)).read_bytes()
        assert hashlib.sha256(held).hexdigest() == file.digest
        assert len(held) == file.size_bytes
    artifact = (root / artifact_path("detector", manifest.variants[0].artifact.digest)).read_bytes()
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(manifest.variants[0].requires.operators)
    # The golden vectors are the artifact's own outputs.
    golden = codec.decode_msgpack(
        (root / artifact_path("detector", manifest.golden.file.digest)).read_bytes(),
        GoldenFile,
        limit_bytes=limits.ARTIFACT_BYTES,
    )
    inputs = {t.name: np.frombuffer(t.data, t.dtype).reshape(t.shape) for t in golden.inputs}
    assert len(inputs["features"]) == 32
    session = onnxruntime.InferenceSession(artifact)
    expected = np.frombuffer(golden.outputs[0].data, "<f4").reshape(golden.outputs[0].shape)
    np.testing.assert_allclose(session.run(None, inputs)[0], expected, atol=1e-6)
    # The baseline is on the schema's edges, over all of its rows.
    baseline = codec.decode_msgpack(
        (root / artifact_path("detector", manifest.baseline.digest)).read_bytes(),
        Baseline,
        limit_bytes=limits.MANIFEST_BYTES,
    )
    assert baseline == staged.baseline
    feature_sketches.check(baseline.inputs, manifest.features.inputs)
    feature_sketches.check(baseline.outputs, manifest.features.outputs)
    assert baseline.outputs.categorical[0].rows == 100


def test_same_upload_gives_the_same_release(stage: Any) -> None:
    assert stage()[0].sealed.digest == stage()[0].sealed.digest


def test_int8_that_is_another_model(bench: Any, stage: Any, classifier: Any, npz: Any) -> None:
    # One input is a thousand times as large as the other, and only the small one decides: eight
    # bits for both together leave nothing of it.
    random = np.random.default_rng(1)
    rows = np.column_stack([random.uniform(-1e4, 1e4, 200), random.uniform(-1, 1, 200)])
    data = npz(features=rows.astype(np.float32))
    model = classifier(weights=np.array([[0, 0], [1, -1]])).SerializeToString()
    given = {"calibration": data, "golden": data, "baseline": data}
    problem = _refusal(lambda: stage(model=model, **given))
    assert (problem.gate, problem.code, problem.bound) == ("parity", "parity_failed", 0.99)
    assert problem.figure < 0.8
    assert bench.stored() == []


def test_calibration_that_does_not_cover_use(bench: Any, stage: Any, npz: Any, rows: Any) -> None:
    problem = _refusal(
        lambda: stage(calibration=npz(features=rows() * 0.01), golden=npz(features=rows()))
    )
    assert problem.gate == "parity"
    assert bench.stored() == []


def test_model_that_quantising_does_not_help(stage: Any) -> None:
    # A tree has no operator with a quantised form; refusing it would help nobody.
    float_ = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 4])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["features"],
        ["logits"],
        domain="ai.onnx.ml",
        n_targets=2,
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_values=[0.5, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        target_treeids=[0, 0],
        target_nodeids=[1, 2],
        target_ids=[0, 1],
        target_weights=[1.0, 1.0],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph([node], "tree", [float_], [out])
    tree = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    staged, steps = stage(model=tree)
    variant = staged.sealed.manifest.variants[0]
    assert variant.precision == "float32"
    assert variant.artifact.digest == hashlib.sha256(tree).hexdigest()
    figures = {step.name: step for step in steps}["quantisation"]
    assert figures.figures["chosen"] == "float"
    assert "cannot be quantised" in str(figures.figures["reason"])
    assert [row.passes for row in figures.candidates] == [False, False]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (lambda npz, rows: npz(image=rows()), "wrong_inputs"),
        (lambda npz, rows: npz(features=rows(), more=rows()), "wrong_inputs"),
        (lambda npz, rows: npz(features=rows(columns=5)), "wrong_shape"),
        (lambda npz, rows: npz(features=rows().reshape(-1, 2, 2)), "wrong_shape"),
        (lambda npz, rows: npz(features=np.float32(1)), "wrong_shape"),
        (lambda npz, rows: npz(features=rows(count=3)), "wrong_rows"),
        (lambda npz, rows: npz(features=rows(count=0)), "wrong_rows"),
        (lambda npz, rows: npz(features=np.full((50, 4), np.nan, np.float32)), "not_finite"),
        (lambda npz, rows: b"no archive", "not_npz"),
    ],
)
@pytest.mark.parametrize("kind", ["calibration", "golden", "baseline"])
def test_example_data_that_does_not_fit(
    bench: Any, stage: Any, npz: Any, rows: Any, data: Any, code: str, kind: str
) -> None:
    problem = _refusal(lambda: stage(**{kind: data(npz, rows)}))
    assert (problem.gate, problem.code) == ("data", code)
    assert kind in problem.detail
    assert bench.stored() == []


def test_model_that_returns_nan(bench: Any, stage: Any, classifier: Any) -> None:
    weights = np.full((4, 3), np.inf)
    problem = _refusal(lambda: stage(model=classifier(weights=weights).SerializeToString()))
    assert problem.gate in {"quantisation", "execution"}
    assert bench.stored() == []


def test_later_release_is_measured_on_the_same_edges(stage: Any, npz: Any, rows: Any) -> None:
    first = stage()[0].sealed.manifest
    wider = npz(features=rows(seed=8) * 2)
    second = stage("1.1.0", previous=first, calibration=wider, golden=wider, baseline=wider)[0]
    assert second.sealed.manifest.features.digest() == first.features.digest()
    assert second.sealed.manifest.lineage.previous_version == "1.0.0"


def test_later_release_with_other_inputs(
    bench: Any, stage: Any, classifier: Any, npz: Any, rows: Any
) -> None:
    first = stage()[0].sealed.manifest
    before = len(bench.stored())
    data = npz(other=rows())
    renamed = classifier(name="other").SerializeToString()
    given = {"calibration": data, "golden": data, "baseline": data}
    problem = _refusal(lambda: stage("1.1.0", previous=first, model=renamed, **given))
    assert (problem.gate, problem.code) == ("feature-schema", "schema_changed")
    assert (problem.figure, problem.bound) == (1, 0)
    assert len(bench.stored()) == before


def test_later_release_with_other_classes(stage: Any) -> None:
    first = stage(metadata={"classes": ["a", "b", "c"]})[0].sealed.manifest
    assert first.features.outputs.categorical[0].vocabulary == ["a", "b", "c"]
    stage("1.1.0", previous=first)
    problem = _refusal(
        lambda: stage("1.2.0", previous=first, metadata={"classes": ["c", "b", "a"]})
    )
    assert problem.code == "schema_changed"
    assert msgspec.to_builtins(problem)["advice"]


def _forest(trees: int, depth: int) -> bytes:
    """A random forest as scikit-learn's converters write it: labels, and probabilities."""
    rng = np.random.default_rng(7)
    inner, per_tree = 2**depth - 1, 2 ** (depth + 1) - 1
    ids = np.tile(np.arange(per_tree), trees)
    is_leaf = ids >= inner
    leaves = np.flatnonzero(is_leaf)
    node = helper.make_node(
        "TreeEnsembleClassifier",
        ["features"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        classlabels_int64s=[0, 1, 2],
        nodes_treeids=np.repeat(np.arange(trees), per_tree).tolist(),
        nodes_nodeids=ids.tolist(),
        nodes_featureids=rng.integers(0, 4, len(ids)).tolist(),
        nodes_modes=["LEAF" if leaf else "BRANCH_LEQ" for leaf in is_leaf],
        nodes_values=rng.normal(1, 1, len(ids)).astype(np.float32).tolist(),
        nodes_truenodeids=np.where(is_leaf, 0, 2 * ids + 1).tolist(),
        nodes_falsenodeids=np.where(is_leaf, 0, 2 * ids + 2).tolist(),
        class_treeids=np.repeat(np.arange(trees), per_tree)[leaves].tolist(),
        class_nodeids=ids[leaves].tolist(),
        class_ids=rng.integers(0, 3, len(leaves)).tolist(),
        class_weights=[1.0 / trees] * len(leaves),
        post_transform="NONE",
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "forest",
        [value("features", TensorProto.FLOAT, ["batch", 4])],
        [
            value("probabilities", TensorProto.FLOAT, ["batch", 3]),
            value("label", TensorProto.INT64, ["batch"]),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def test_forest_that_is_searched_and_stays_as_it_is(stage: Any) -> None:
    forest = _forest(trees=24, depth=8)
    assert len(forest) >= releases_limits.SEARCH_BYTES
    heard: list[str] = []
    staged, steps = stage(model=forest, output_kind="probabilities", on_try=heard.append)
    assert staged.sealed.manifest.variants[0].artifact.digest == hashlib.sha256(forest).hexdigest()
    found = {step.name: step for step in steps}["quantisation"]
    assert found.figures["chosen"] == "float"
    assert found.figures["reason"]
    assert {"static", "dynamic", "weights-int8"} <= {row.recipe for row in found.candidates}
    assert len(heard) >= len(found.candidates)


def test_small_upload_with_large_answers_costs_the_server_no_memory(stage: Any, npz: Any) -> None:
    """Each answer is 64 MiB, and there is one of the float model and of each candidate."""
    spread = np.random.default_rng(1).normal(size=(4, 8_192)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "spread"], ["values"])],
        "wide",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, ["n", 8_192])],
        initializer=[numpy_helper.from_array(spread, "spread")],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    sent = npz(features=np.random.default_rng(2).normal(size=(2_048, 4)))
    tracemalloc.start()
    stage(model=model, golden=sent, calibration=sent, baseline=sent, output_kind="values")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 32 * 1024**2

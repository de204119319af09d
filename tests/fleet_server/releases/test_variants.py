"""Guards from artifacts beside the main one that are another model, or reach the wrong devices."""

import hashlib
import json
from typing import Any

import msgspec
import onnx
import pytest
from onnx import TensorProto, helper

from fleet_contract.manifest import Capabilities, Runtime, artifact_path, choose_variant
from fleet_server.releases import search
from fleet_server.releases.candidates import Found, Trial
from fleet_server.releases.pipeline import stage
from fleet_server.releases.states import Refusal, Step
from fleet_server.releases.timing import Target
from tests import toy_tflite

PI = Capabilities({"onnxruntime": "1.31.1", "litert": "2.3.0"}, "aarch64", 26, 13, 1 << 30, "2.4.0")
SMALL = Capabilities({"litert": "2.3.0"}, "armv7l", 0, 0, 1 << 28, "2.0.2")
OTHER = Capabilities({"onnxruntime": "1.31.1"}, "x86_64", 26, 13, 1 << 30, "2.4.0")


@pytest.fixture
def model(classifier: Any) -> bytes:
    """In ONNX what the toy is in TFLite: the classifier with class probabilities."""
    made: onnx.ModelProto = classifier()
    made.graph.node.append(helper.make_node("Softmax", ["logits"], ["scores"], axis=-1))
    made.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])
    )
    data: bytes = made.SerializeToString()
    return data


def _stage(bench: Any, model: bytes, own: bytes | None, variants: list[dict[str, Any]]) -> Any:
    upload = bench.upload(model=model, variants=variants, output_kind="probabilities", numpy="2.0")
    if own is not None:
        (bench.folder / "incoming" / upload.folder / "variant-1.model").write_bytes(own)
    steps: list[Step] = []
    return stage(bench.job(upload), steps.append), steps


def test_each_device_takes_the_first_artifact_that_is_for_it(bench: Any, model: bytes) -> None:
    half = {"name": "pi", "machines": ["aarch64"], "labels": {"hat": "tpu"}, "recipe": "float16"}
    small = {"name": "small", "machines": ["armv7l"], "file": "variant-1"}
    staged, steps = _stage(bench, model, toy_tflite.classifier(), [half, small])
    manifest = staged.sealed.manifest
    assert [item.name for item in manifest.variants] == ["pi", "small", "int8"]
    assert [item.runtime for item in manifest.variants] == [
        Runtime.ONNXRUNTIME,
        Runtime.LITERT,
        Runtime.ONNXRUNTIME,
    ]
    assert manifest.variants[0].precision == "float16"
    assert {item.requires.numpy for item in manifest.variants} == {"2.0"}
    old = msgspec.structs.replace(OTHER, numpy="1.26.4")
    assert choose_variant(manifest, old, {}) is None
    chosen = [
        choose_variant(manifest, PI, {"hat": "tpu"}),
        choose_variant(manifest, PI, {}),
        choose_variant(manifest, SMALL, {}),
        choose_variant(manifest, OTHER, {}),
    ]
    assert [item.name if item else "" for item in chosen] == ["pi", "int8", "small", "int8"]
    for item in manifest.variants:
        path = artifact_path("detector", item.artifact.digest)
        assert (bench.folder / "store" / path).stat().st_size == item.artifact.size_bytes
        assert bench.catalogue.vouches("detector", path)
    figures = next(step for step in steps if step.name == "variants").figures
    assert str(figures["small"]).startswith("litert float")
    # The golden vectors hold for all of them: an allowance above what one artifact has.
    assert manifest.golden.largest_difference > 0


def test_a_variant_is_timed_on_the_hardware_that_it_is_for(
    bench: Any, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, targets = search.search, []

    def look(trial: Trial) -> Found:
        targets.append(trial.place.target)
        return real(trial)

    monkeypatch.setattr(search, "search", look)
    pi = {"name": "pi", "machines": ["aarch64"], "labels": {"hardware": "pi4"}}
    _stage(bench, model, None, [pi])
    assert targets == [Target(), Target({"hardware": "pi4"}, ["aarch64"])]


def test_a_variant_that_is_another_model_is_refused(bench: Any, model: bytes) -> None:
    other = toy_tflite.classifier(factor=-1)
    with pytest.raises(Refusal) as refused:
        _stage(bench, model, other, [{"name": "small", "file": "variant-1"}])
    problem = refused.value.problem
    assert (problem.gate, problem.code) == ("variants", "parity_failed")
    assert problem.figure is not None
    assert problem.detail.startswith("Variant small: ")
    assert bench.stored() == []


def test_a_variant_with_other_tensors_is_refused(bench: Any, model: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        _stage(
            bench,
            model,
            toy_tflite.classifier(columns=5),
            [{"name": "small", "file": "variant-1"}],
        )
    assert refused.value.problem.code == "other_signature"


def test_a_variant_that_cannot_be_made_is_refused(bench: Any) -> None:
    with pytest.raises(Refusal) as refused:
        _stage(bench, toy_tflite.classifier(), None, [{"name": "all", "recipe": "static-7bit"}])
    assert refused.value.problem.gate == "variants"


def test_a_variant_over_the_size_budget_is_refused(bench: Any, model: bytes) -> None:
    upload = bench.upload(
        model=model,
        variants=[{"name": "pi", "recipe": "static"}],
        output_kind="probabilities",
        size_budget_bytes=1,
    )
    trial = bench.job(upload)
    with pytest.raises(Refusal) as refused:
        stage(trial, lambda _: None)
    assert refused.value.problem.code == "over_size_budget"


@pytest.mark.parametrize(
    ("variants", "files", "code"),
    [
        ([{"name": "a", "file": "variant-1"}], [], "variant_files"),
        ([{"name": "a"}], ["variant-1"], "variant_files"),
        ([{"name": "a"}, {"name": "a"}], [], "variant_names"),
        ([{"name": "int8"}], [], "variant_names"),
        ([{"name": "a", "recipe": "mixed"}], [], "variant_recipe"),
        ([{"name": "a", "recipe": "mixed-layers"}], [], "variant_recipe"),
        ([{"name": "a", "recipe": "magic"}], [], "bad_field"),
        ([{"name": "../a"}], [], "bad_field"),
        ([{"name": "a", "machines": ["x\n"]}], [], "bad_field"),
        ([{"name": str(n)} for n in range(9)], [], "bad_field"),
        ([{"name": "a", "unknown": 1}], [], "bad_field"),
    ],
)
def test_an_upload_whose_variants_make_no_sense_is_refused_at_once(
    push: Any, variants: Any, files: list[str], code: str
) -> None:
    given = {name: toy_tflite.classifier() for name in files}
    answer = push(variants=json.dumps(variants), **given)
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (422, code)


def test_a_variants_own_model_has_to_be_signed_as_the_main_one(
    push: Any, client: Any, model: bytes
) -> None:
    asked: list[str] = []

    class Recording:
        def examine(self, name: str, digest: str, signature: bytes, *, now_ms: int) -> None:
            asked.append(digest)

    client.app.state.provenance_policy = Recording()
    own = toy_tflite.classifier()
    wanted = [{"name": "small", "file": "variant-2"}]
    answer = push(model=model, variants=json.dumps(wanted), **{"variant-2": own})
    assert answer.status_code == 202, answer.text
    assert asked == [hashlib.sha256(data).hexdigest() for data in (model, own)]


def test_variants_are_pushed_and_staged_through_the_api(
    push: Any, client: Any, bench: Any, model: bytes
) -> None:
    wanted = [{"name": "small", "machines": ["armv7l"], "file": "variant-1", "recipe": "float"}]
    answer = push(
        model=model,
        output_kind="probabilities",
        variants=json.dumps(wanted),
        **{"variant-1": toy_tflite.classifier()},
    )
    assert answer.status_code == 202, answer.text
    record = bench.settled()
    assert record.state == "staged", record.problem
    assert [item.name for item in record.manifest.variants] == ["small", "int8"]

"""TFLite releases: searched for, compared and sealed as those of ONNX."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fleet_contract import codec, limits
from fleet_contract.manifest import Baseline, GoldenFile, Runtime, artifact_path
from fleet_server.releases.laboratory.laboratory import lay_out
from fleet_server.releases.laboratory.tasks import Build, Built
from fleet_server.releases.litert.session import LiteRtSession
from fleet_server.releases.pipeline import Staged, stage
from fleet_server.releases.states import Recipe, Refusal, Step
from tests import toy_tflite

LARGE = 16_000
"""Hidden units: above the size from which a model is searched for."""


def _stage(bench: Any, model: bytes, **given: Any) -> tuple[Staged, list[Step]]:
    steps: list[Step] = []
    upload = bench.upload(model=model, output_kind="probabilities", **given)
    return stage(bench.job(upload), steps.append), steps


def _held(bench: Any, file: Any) -> bytes:
    path: Path = bench.folder / "store" / artifact_path("detector", file.digest)
    return path.read_bytes()


@pytest.mark.parametrize("hidden", [0, LARGE])
def test_devices_get_what_was_measured(bench: Any, hidden: int) -> None:
    whole = toy_tflite.classifier(hidden=hidden)
    staged, steps = _stage(bench, whole)
    manifest = staged.sealed.manifest
    variant = manifest.variants[0]
    assert (variant.runtime, variant.precision) == (Runtime.LITERT, "int8" if hidden else "float32")
    assert (variant.requires.opset, variant.requires.ir_version) == (0, 0)
    assert "FULLY_CONNECTED" in variant.requires.operators
    assert "ai-edge-litert" in manifest.lineage.tools
    shipped = _held(bench, variant.artifact)
    golden = codec.decode_msgpack(
        _held(bench, manifest.golden.file), GoldenFile, limit_bytes=limits.ARTIFACT_BYTES
    )
    rows = {t.name: np.frombuffer(t.data, t.dtype).reshape(t.shape) for t in golden.inputs}
    expected = np.frombuffer(golden.outputs[0].data, "<f4").reshape(golden.outputs[0].shape)
    found = LiteRtSession(shipped).run(["scores"], rows)[0]
    assert np.allclose(found, expected, atol=1e-5)
    codec.decode_msgpack(
        _held(bench, manifest.baseline), Baseline, limit_bytes=limits.ARTIFACT_BYTES
    )
    if hidden:
        table = next(step for step in steps if step.name == "quantisation").candidates
        tried = {row.recipe for row in table}
        assert tried >= {"static", "dynamic", "float16", "weights-int8"}
        assert sum(row.chosen for row in table) == 1
        assert all(row.latency_us for row in table if row.passes)
        assert len(shipped) < len(whole)


def test_a_file_that_is_quantised_already_is_taken_as_it_is(bench: Any, npz: Any) -> None:
    given = _quantised(bench)
    staged, steps = _stage(bench, given)
    variant = staged.sealed.manifest.variants[0]
    assert _held(bench, variant.artifact) == given
    assert variant.precision == "int8"
    figures = next(step for step in steps if step.name == "quantisation").figures
    assert figures["chosen"] == "given"
    assert "before it was pushed" in str(figures["reason"])


def test_rows_of_another_type_than_the_file_takes_are_refused(bench: Any, npz: Any) -> None:
    with pytest.raises(Refusal) as refused:
        _stage(bench, toy_tflite.classifier(), golden=npz(features=np.zeros((20, 5), np.float32)))
    assert refused.value.problem.code == "wrong_shape"
    assert bench.stored() == []


def test_nothing_is_stored_of_a_custom_operator(bench: Any) -> None:
    with pytest.raises(Refusal) as refused:
        _stage(bench, toy_tflite.classifier(custom="Mine"))
    assert msgspec.to_builtins(refused.value.problem)["gate"] == "examination"
    assert bench.stored() == []


def _quantised(bench: Any) -> bytes:
    folder = bench.folder / "made"
    (folder / "inner").mkdir(parents=True)
    (folder / "model").write_bytes(toy_tflite.classifier(hidden=LARGE))
    rows = lay_out({"features": np.eye(4, dtype=np.float32)}, folder, "rows")
    target = folder / "inner" / "made"
    task = Build(str(folder / "model"), Recipe.DYNAMIC, rows, str(target))
    bench.laboratory.do(task, Built, gate="quantisation", folder=folder / "inner")
    data: bytes = target.read_bytes()
    return data

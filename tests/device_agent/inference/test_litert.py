"""Guards from TFLite releases that answer otherwise than they did at staging, or not at all."""

import hashlib
import sys
import threading
from typing import Any

import msgspec
import numpy as np
import pytest

from device_agent.errors import StepFailed
from device_agent.inference import litert
from device_agent.inference.capabilities import capabilities
from device_agent.inference.probe import Prober
from device_agent.inference.runtimes import Runtimes
from fleet_contract.errors import Reason
from fleet_contract.manifest import Runtime, TensorSpec
from tests import toy_tflite

INPUTS = [TensorSpec("x", "float32", [None, 4])]
OUTPUTS = [TensorSpec("y", "float32", [None, 3])]


def _session(**made: Any) -> litert.LiteRtSession:
    model = toy_tflite.classifier(name="x", answer="y", **made)
    return litert.LiteRtSession(model, inputs=INPUTS, outputs=OUTPUTS)


@pytest.fixture
def release(workshop: Any) -> Any:
    """A TFLite release whose golden outputs are those of another session of the same bytes."""
    model = toy_tflite.classifier(name="x", answer="y")
    expected = _session().run({"x": workshop.rows})["y"]
    made = workshop.release(model, expected)
    variant = msgspec.structs.replace(made.variant, runtime=Runtime.LITERT)
    return msgspec.structs.replace(made.manifest, variants=[variant]), made


def test_tiny_model_is_what_the_schema_makes_of_it() -> None:
    assert toy_tflite.doubling() == litert.TINY_MODEL


def test_rows_are_answered_one_by_one_and_stacked() -> None:
    session = _session()
    rows = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
    together = session.run({"x": rows})["y"]
    alone = [session.run({"x": row[None]})["y"][0] for row in rows]
    assert together.shape == (7, 3)
    assert np.array_equal(together, np.array(alone))
    assert session.run({"x": rows[:0]})["y"].shape == (0, 3)


def test_threads_do_not_mix_their_answers() -> None:
    session, wrong = _session(), []

    def ask(column: int) -> None:
        row = np.zeros((1, 4), np.float32)
        row[0, column] = 9
        for _ in range(300):
            if session.run({"x": row})["y"].argmax() != column:
                wrong.append(column)

    threads = [threading.Thread(target=ask, args=(column,)) for column in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "made", [{"columns": 5}, {"batch": 2}, {"signatures": 0}, {"custom": "Mine"}]
)
def test_a_file_that_is_not_as_promised_is_broken(made: dict[str, Any]) -> None:
    with pytest.raises(StepFailed) as failed:
        _session(**made)
    assert failed.value.reason is Reason.BROKEN_MODEL


def test_a_truncated_file_is_broken() -> None:
    whole = toy_tflite.classifier(name="x", answer="y")
    for size in (0, 8, len(whole) // 2, len(whole) - 1):
        with pytest.raises(StepFailed):
            litert.LiteRtSession(whole[:size], inputs=INPUTS, outputs=OUTPUTS)


def test_without_the_package_the_agent_works_and_does_not_claim_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    assert list(capabilities().runtimes) == ["onnxruntime"]


def test_a_release_is_probed_in_a_child_and_answers_in_the_slot(
    release: Any, prober: Prober, workshop: Any
) -> None:
    manifest, made = release
    verdict = prober.probe(made.path, made.golden_path, manifest, manifest.variants[0])
    assert verdict.reason is None, verdict.detail
    session = Runtimes().load(made.path, manifest, manifest.variants[0])
    assert set(session.run({"x": workshop.rows})) == {"y"}


def test_a_release_that_answers_otherwise_is_refused(release: Any, prober: Prober) -> None:
    manifest, made = release
    golden = msgspec.structs.replace(manifest.golden, largest_difference=0.0)
    changed = toy_tflite.classifier(name="x", answer="y", factor=1.1)
    made.path.write_bytes(changed)
    artifact = msgspec.structs.replace(
        manifest.variants[0].artifact,
        digest=hashlib.sha256(changed).hexdigest(),
        size_bytes=len(changed),
    )
    variant = msgspec.structs.replace(manifest.variants[0], artifact=artifact)
    wrong = msgspec.structs.replace(manifest, variants=[variant], golden=golden)
    verdict = prober.probe(made.path, made.golden_path, wrong, variant)
    assert verdict.reason is Reason.GOLDEN_MISMATCH

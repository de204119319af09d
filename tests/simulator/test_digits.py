"""Guards from a demo that shows nothing: models too alike, or a bad one that staging catches."""

import hashlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fleet_contract.manifest import Manifest, artifact_path
from fleet_server.provenance.statement import Attester
from fleet_server.releases import pipeline
from fleet_server.releases.bench import Job
from fleet_server.releases.laboratory.laboratory import Laboratory
from fleet_server.releases.store import Store
from fleet_server.releases.uploads import FILES, Options, Upload
from simulator import digits
from simulator.digits import TrainedModel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained() -> dict[str, TrainedModel]:
    return digits.train()


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    found = Laboratory()
    yield found
    found.close()


@pytest.fixture(scope="module")
def staged(
    trained: dict[str, TrainedModel],
    tmp_path_factory: pytest.TempPathFactory,
    laboratory: Laboratory,
) -> dict[str, tuple[Manifest, bytes, list[int]]]:
    """Version → manifest, int8 artifact, class counts of the baseline; staged one on the other."""
    root = tmp_path_factory.mktemp("staged")
    store = Store(root / "store")
    found: dict[str, tuple[Manifest, bytes, list[int]]] = {}
    previous = None
    for counter, (version, model) in enumerate(trained.items(), 1):
        folder = root / "incoming" / version
        folder.mkdir(parents=True)
        (folder / FILES["model"]).write_bytes(model.model)
        for kind in ("calibration", "golden", "baseline"):
            np.savez(folder / FILES[kind], **{digits.INPUT: getattr(model, kind)})
        digest = hashlib.sha256(model.model).hexdigest()
        job = Job(
            upload=Upload(version, Options(digits.MODEL, version), digest, len(model.model)),
            counter=counter,
            created_ms=counter,
            previous=previous,
            incoming=root / "incoming",
            store=store,
            laboratory=laboratory,
            vouch=lambda model, manifest, files: True,
            monotonic_ms=lambda: time.monotonic_ns() // 1_000_000,
            attester=Attester("home", lambda kind, payload: payload),
            invocation="c-1",
        )
        result = pipeline.stage(job, lambda step: None)
        previous = result.sealed.manifest
        path = root / "store" / artifact_path(digits.MODEL, previous.variants[0].artifact.digest)
        counts = result.baseline.outputs.categorical[0].counts[: digits.CLASSES]
        found[version] = (previous, path.read_bytes(), counts)
    return found


def _predict(data: bytes) -> Any:
    images, labels = digits.field_images()
    session = onnxruntime.InferenceSession(data)
    scores = session.run([digits.OUTPUT], {digits.INPUT: images})[0]
    return scores.argmax(axis=1), labels


def test_models_are_as_good_as_the_story_needs(trained: dict[str, TrainedModel]) -> None:
    assert list(trained) == ["1.0.0", "1.1.0", "2.0.0"]
    first, better, wrong = trained.values()
    assert 0.92 < first.accuracy < 0.97
    assert better.accuracy >= 0.97
    assert better.field_accuracy > first.field_accuracy + 0.01
    assert wrong.accuracy > 0.97, "its own images must not give it away"
    assert wrong.field_accuracy < 0.2


def test_devices_see_images_that_no_model_has_seen(trained: dict[str, TrainedModel]) -> None:
    images, labels = digits.field_images()
    assert images.shape == (len(labels), 1, 8, 8) and len(labels) > 300
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0.0, 16.0)
    known = {image.tobytes() for image in trained["1.1.0"].calibration}
    assert not known & {image.tobytes() for image in images}


def test_bad_release_passes_staging_like_the_good_ones(staged: dict) -> None:
    schemas = {manifest.features.digest() for manifest, _, _ in staged.values()}
    assert len(staged) == 3
    assert len(schemas) == 1, "arms on other edges could not be merged"


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_good_releases_are_good_in_the_field(staged: dict, version: str) -> None:
    winners, labels = _predict(staged[version][1])
    assert (winners == labels).mean() > 0.93
    assert _shift(winners, staged[version][2]) < 0.2


def test_bad_release_is_wrong_in_the_field(staged: dict) -> None:
    winners, labels = _predict(staged["2.0.0"][1])
    assert (winners == labels).mean() < 0.2
    # Most answers are a few classes, which none of its checks at staging has seen.
    assert np.sort(np.bincount(winners, minlength=10))[-3:].sum() > 0.6 * len(winners)
    assert _shift(winners, staged["2.0.0"][2]) > 0.4


def _shift(winners: Any, baseline: list[int]) -> float:
    """Total variation distance between the classes in the field and those of the baseline."""
    field = np.bincount(winners, minlength=digits.CLASSES) / len(winners)
    before = np.array(baseline) / sum(baseline)
    return float(np.abs(field - before).sum() / 2)


def test_training_takes_seconds_and_repeats_itself(trained: dict[str, TrainedModel]) -> None:
    started = time.process_time()
    again = digits.train()
    assert time.process_time() - started < 15
    assert {v: m.model for v, m in again.items()} == {v: m.model for v, m in trained.items()}

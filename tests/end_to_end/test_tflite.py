"""A TFLite release goes the whole way: pushed, staged, rolled out, and answered with by devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator import digits
from tests import toy_tflite
from tests.end_to_end.town import DEVICES, Town, goes_on_predicting, wait_for_versions

pytestmark = pytest.mark.slow


@pytest.fixture
def tflite_town(tmp_path: Path, free_port: int, images: Path) -> Any:
    town = Town(tmp_path, port=free_port, images=images, broker="embedded")
    try:
        town.start()
        yield town
    finally:
        town.close()


def test_devices_swap_from_one_tflite_release_to_the_next(
    tflite_town: Town, tmp_path: Path
) -> None:
    town = tflite_town
    images, labels = digits.field_images()
    flat = np.hstack([images.reshape(len(images), -1), np.ones((len(images), 1))])
    fitted = np.linalg.lstsq(flat, np.eye(10)[labels] * 4, rcond=None)[0][:-1].T
    arrays: dict[str, Any] = {digits.INPUT: images[:256]}
    np.savez(tmp_path / "rows.npz", **arrays)
    versions = ("1.0.0", "1.1.0")
    for number, version in enumerate(versions):
        model = toy_tflite.classifier(
            images[0].size,
            name=digits.INPUT,
            shape=images.shape[1:],
            weights=fitted * (1 + number / 100),
        )
        path = tmp_path / f"{version}.tflite"
        path.write_bytes(model)
        rows = str(tmp_path / "rows.npz")
        said = town.edgefleet(
            *("model", "push", digits.MODEL, str(path), "--version", version, "--wait", "--json"),
            *("--calibration", rows, "--golden", rows, "--output", "probabilities"),
            *("--agreement", "0.9"),
        )
        town.digests[version] = said.json["digest"]
    town.make_cohort("lab")
    with town.fleet("lab") as fleet:
        for version in versions:
            ended = town.roll_out("lab", version)
            assert ended["brief"]["state"] == "completed", ended["explanation"]
            wait_for_versions(town, fleet, {version: DEVICES})
        shown = town.device("lab-0001")
        assert "litert" in str(shown)
        goes_on_predicting(fleet)

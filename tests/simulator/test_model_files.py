"""Guards the files that a newcomer pushes: complete, named as the command line wants them."""

import json
from pathlib import Path

import numpy as np
import pytest

from simulator import digits, model_files
from simulator.errors import SimulatorError


@pytest.fixture
def model() -> digits.TrainedModel:
    """One release that needs no training."""
    images = np.zeros((16, 1, 8, 8), dtype=np.float32)
    return digits.TrainedModel(
        "1.0.0", b"onnx", images, images + 1, images + 2, np.arange(16), 0.9, 0.9
    )


def test_release_without_one_of_its_files(model: digits.TrainedModel, tmp_path: Path) -> None:
    (folder,) = model_files.write([model], tmp_path / "models")
    assert folder == tmp_path / "models" / "1.0.0"
    assert (folder / "model.onnx").read_bytes() == b"onnx"
    for name, first in (("calibration", 0), ("golden", 1), ("baseline", 2)):
        with np.load(folder / f"{name}.npz") as arrays:
            assert list(arrays) == [digits.INPUT]
            assert arrays[digits.INPUT].shape == (16, 1, 8, 8)
            assert arrays[digits.INPUT].flat[0] == first
    with np.load(folder / "evaluation.npz") as arrays:
        assert list(arrays["label"]) == list(range(16))
    assert json.loads((folder / "metadata.json").read_text())["licence"] == "BSD-3-Clause"


def test_folder_that_cannot_be_written(model: digits.TrainedModel, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(SimulatorError, match="--folder"):
        model_files.write([model], tmp_path / "models")

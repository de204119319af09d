"""The demo's three releases as files, for whoever pushes them by hand.

Decides which files a release consists of and how they are named, which is how ``edgefleet model
push`` takes a whole folder. What is in them is decided in :mod:`simulator.digits`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simulator import digits
from simulator.errors import SimulatorError

METADATA = "metadata.json"


def write(models: Sequence[digits.TrainedModel], folder: Path) -> list[Path]:
    """Write each release into a folder named after its version, below ``folder``.

    A release is ``model.onnx``, ``metadata.json`` and, as npz files with an array named as the
    model's input, ``calibration.npz``, ``golden.npz``, ``baseline.npz`` and, with labels,
    ``evaluation.npz``. Files of an earlier run are replaced.

    Returns:
        The folders, in the order of ``models``.

    Raises:
        SimulatorError: if a file cannot be written.
    """
    folders = [folder / model.version for model in models]
    try:
        for model, target in zip(models, folders, strict=True):
            target.mkdir(parents=True, exist_ok=True)
            (target / "model.onnx").write_bytes(model.model)
            (target / METADATA).write_text(json.dumps(model.metadata(), indent=2), encoding="utf-8")
            for name, rows in model.rows().items():
                arrays: dict[str, Any] = {**rows}
                np.savez(target / f"{name}.npz", **arrays)
    except OSError as error:
        raise SimulatorError(
            f"{folder} cannot be written ({error.strerror}): name another by --folder"
        ) from error
    return folders

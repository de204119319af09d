"""Trained models, and towns: one a module, which its tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator import digits
from simulator.digits import TrainedModel
from tests.end_to_end.town import Town


@pytest.fixture(scope="session")
def models() -> dict[str, TrainedModel]:
    """Version → a classifier of digits; 2.0.0 was trained on other images than devices have."""
    return digits.train()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What devices see, in a file."""
    path = tmp_path_factory.mktemp("images") / "images.npz"
    arrays: dict[str, Any] = {digits.INPUT: digits.field_images()[0]}
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def town(
    tmp_path_factory: pytest.TempPathFactory,
    pick_lasting_port: Callable[[], int],
    models: dict[str, TrainedModel],
    images: Path,
) -> Iterator[Town]:
    """A server with the embedded broker and SQLite, and all releases."""
    made = Town(
        tmp_path_factory.mktemp("town"), port=pick_lasting_port(), images=images, broker="embedded"
    )
    try:
        made.start()
        made.push(models.values())
        yield made
    finally:
        made.close()

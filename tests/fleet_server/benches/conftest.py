"""A heat of two candidates and a rival, as staging hands it over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fleet_contract.manifest import Runtime, TensorSpec
from fleet_server.releases.examples import Rows
from fleet_server.releases.laboratory.laboratory import lay_out
from fleet_server.releases.timing import Heat, Runner

INPUTS, OUTPUTS = [TensorSpec("x", "float32", [None, 4])], [TensorSpec("y", "float32", [None, 2])]


@pytest.fixture
def make_heat(tmp_path: Path) -> Callable[..., Heat]:
    """Lay out a heat whose models are these bytes, the rival first."""

    def make(*models: bytes, rows: int = 100, row_elements: int = 4) -> Heat:
        runners = []
        for number, data in enumerate(models or (b"float", b"int8", b"half")):
            path = tmp_path / f"model-{number}"
            path.write_bytes(data)
            runners.append(Runner(f"model {number}", path, len(data), Runtime.ONNXRUNTIME))
        arrays: Rows = {"x": np.arange(rows * row_elements, dtype=np.float32).reshape(rows, -1)}
        return Heat(runners[0], runners[1:], lay_out(arrays, tmp_path, "rows"), INPUTS, OUTPUTS)

    return make

"""The command line as a person uses it: words in, exit code and text out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet_server.command_line import main


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def edgefleet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> Callable[..., Said]:
    """Run a command in this process; its data folder is that of the fixture ``server``."""
    # Tables are as wide as they need to be.
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> Said:
        capsys.readouterr()
        arguments = ["edgefleet", "--data-dir", str(tmp_path / "data"), *words]
        monkeypatch.setattr(sys, "argv", arguments)
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run


@pytest.fixture
def classifier_files(tmp_path: Path) -> dict[str, Path]:
    """A small classifier and its examples, on disk."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "weight"], ["logits"])],
        "classifier",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        initializer=[numpy_helper.from_array(np.eye(3, dtype=np.float32), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    rows = np.eye(3, dtype=np.float32)[np.arange(60) % 3]
    np.savez(tmp_path / "rows.npz", features=rows)
    return {"model": tmp_path / "model.onnx", "rows": tmp_path / "rows.npz"}

"""The command line as a person uses it: words in, exit code and text out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet_server.command_line import main

# Against a hang only: a cold start of MLflow on a busy machine has taken a minute and a half.
MLFLOW_S = 300.0


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


@dataclass(frozen=True)
class MlflowServer:
    """A private MLflow server, and the environment that it was started from."""

    url: str
    environment: dict[str, str]
    python: Path
    folder: Path

    def run(self, program: str) -> Any:
        """Run a program as a data scientist would; return what it printed, as JSON."""
        done = subprocess.run(
            [self.python, "-W", "ignore", "-c", program],
            env=self.environment | {"MLFLOW_TRACKING_URI": self.url},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=MLFLOW_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def mlflow_server(
    require_mlflow: Path, tmp_path: Path, pick_port: Callable[[], int]
) -> Iterator[MlflowServer]:
    """MLflow, on loopback, with SQLite and its artifacts in the test's folder."""
    folder, port = tmp_path / "mlflow", pick_port()
    folder.mkdir()
    environment = {
        "PATH": f"{require_mlflow / 'bin'}:/usr/bin:/bin",
        "HOME": str(folder),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    python = require_mlflow / "bin" / "python"
    words: list[str | Path] = [
        python,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    words += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'runs.sqlite'}"]
    words += ["--artifacts-destination", str(folder / "artifacts")]
    log_path = folder / "log"
    with log_path.open("wb") as log:
        # A session of its own: its workers end with it.
        process = subprocess.Popen(
            words, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + MLFLOW_S
        while not _is_up(url):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"MLflow did not start:\n{log_path.read_text()[-3000:]}")
            time.sleep(0.2)
        yield MlflowServer(url, environment, python, folder)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.HTTPError:
        return False

"""Guards from a push that ends in silence: what a person or a script is told, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def _json(out: str) -> Any:
    # The server runs in this process, too, and logs to the same place.
    return json.JSONDecoder().raw_decode(out, out.index("{"))[0]


def test_push_and_look(
    server: Any, edgefleet: Callable[..., Any], classifier_files: dict[str, Path]
) -> None:
    model = ["--url", server.settings.url, "model"]
    data = [
        "--calibration",
        str(classifier_files["rows"]),
        "--golden",
        str(classifier_files["rows"]),
    ]
    push = [*model, "push", "detector", str(classifier_files["model"]), *data]
    said = edgefleet(*push, "--version", "1.0.0", "--wait")
    assert said.code == 0, said.err
    assert "detector 1.0.0  staged" in said.out
    assert "of 60 golden rows agree" in said.out
    assert "KiB float" in said.out
    said = edgefleet(*push, "--version", "1.0.0")
    assert said.code == 1
    assert "a version never changes" in said.err
    said = edgefleet(*push, "--version", "1.1.0", "--wait", "--json")
    assert said.code == 0
    assert _json(said.out)["state"] == "staged"
    assert "1.1.0" in edgefleet(*model, "list").out
    said = edgefleet(*model, "show", "detector", "1.0.0", "--json")
    assert _json(said.out)["manifest"]["version"] == "1.0.0"
    assert "signed     by nobody" in edgefleet(*model, "show", "detector", "1.0.0").out
    # A signature that this server cannot judge is not passed over.
    signed = [*push, "--version", "1.2.0", "--signature", str(classifier_files["rows"])]
    said = edgefleet(*signed)
    assert said.code == 1
    assert "Nobody is named who may sign detector" in said.err
    sealed = classifier_files["rows"].parent / "statement.json"
    ask = [*model, "provenance", "detector", "1.0.0"]
    said = edgefleet(*ask, "--file", str(classifier_files["model"]), "--output", str(sealed))
    assert said.code == 0, said.out + said.err
    assert "verified" in said.out
    assert b"application/vnd.in-toto+json" in sealed.read_bytes()
    # A file that had no part in it is not let pass.
    said = edgefleet(*ask, "--file", str(sealed))
    assert said.code == 1
    assert "nothing that it names" in said.out


def test_refused_push_says_why_and_fails(
    server: Any, edgefleet: Callable[..., Any], classifier_files: dict[str, Path]
) -> None:
    model = ["--url", server.settings.url, "model"]
    data = [
        "--calibration",
        str(classifier_files["rows"]),
        "--golden",
        str(classifier_files["rows"]),
    ]
    push = [
        *model,
        "push",
        "detector",
        str(classifier_files["rows"]),
        *data,
        "--version",
        "1.0.0",
        "--wait",
    ]
    said = edgefleet(*push)
    assert said.code == 3
    assert "no ONNX model" in said.out
    said = edgefleet(*push, "--json")
    assert said.code == 3
    assert _json(said.out)["problem"]["code"] == "not_onnx"
    assert "no ONNX model" in edgefleet(*model, "list", "detector").out
    assert edgefleet(*model, "show", "detector", "9.0.0").code == 1
    assert edgefleet(*model, "push", "detector", "nowhere.onnx").code == 2


def test_folder_that_holds_half_a_release(
    server: Any, edgefleet: Callable[..., Any], classifier_files: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    push = ["--url", server.settings.url, "model", "push", "detector", str(folder)]
    said = edgefleet(*push, "--version", "1.0.0")
    assert said.code == 1 and "model.onnx" in said.err
    (folder / "model.onnx").write_bytes(classifier_files["model"].read_bytes())
    (folder / "golden.npz").write_bytes(classifier_files["rows"].read_bytes())
    said = edgefleet(*push, "--version", "1.0.0")
    assert said.code == 1 and "--calibration" in said.err and "--golden" not in said.err
    (folder / "metadata.json").write_text('{"owner": "Ann"}')
    said = edgefleet(
        *push, "--version", "1.0.0", "--calibration", str(classifier_files["rows"]), "--wait"
    )
    assert said.code == 0, said.err
    assert "owner      Ann" in said.out, "what the folder says of the release was left behind"

"""Guards from gates of one's own that hold up, bring down or silently pass a release."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet_server.releases.gates import custom
from fleet_server.releases.laboratory.laboratory import Laboratory

CODE = """
import os, socket, subprocess, time
from fleet_server.releases.gates.custom import Finding

def judge(submission):
    right = submission.evaluation_outputs["logits"].argmax(1) == submission.labels["label"]
    lost = [right[submission.slices["site"] == site].mean() for site in (0, 1)]
    gap = abs(lost[0] - lost[1])
    same = submission.golden_outputs["logits"].shape == submission.float_outputs["logits"].shape
    assert same and os.path.getsize(submission.artifact) > 0 and submission.version == "1.0.0"
    assert not submission.golden["features"].flags.writeable
    return [Finding("gap", bool(gap <= 0.1), figure=gap, bound=0.1, note="Between two sites.")]

def crash(submission):
    os._exit(3)

def fail(submission):
    raise ValueError("no such column")

def hang(submission):
    time.sleep(3600)

def nonsense(submission):
    return [True]

def silent(submission):
    return []

def linger(submission):
    left = subprocess.Popen(["/bin/sleep", "600"])
    return [Finding("left", True, figure=float(left.pid))]

def phone(submission):
    socket.create_connection(("127.0.0.1", 9), timeout=1)
    return [Finding("sent", True)]
"""


@pytest.fixture
def installed(
    tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch, stage: Any
) -> Iterator[Callable[..., None]]:
    """Installs a package with one gate, where server and laboratory find it."""
    folder: Path = tmp_path_factory.mktemp("site-packages")
    laboratory = Laboratory()

    def install(function: str, name: str = "fairness") -> None:
        (folder / "my_gates.py").write_text(CODE)
        about = folder / "my_gates-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-gates\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[{custom.GROUP}]\n{name} = my_gates:{function}\n")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder))
        stage.laboratory = laboratory

    yield install
    laboratory.close()


@pytest.fixture
def evaluation(rows: Any, npz: Any) -> Callable[[int], bytes]:
    """Makes rows of two sites, of which the second has so many wrong labels."""

    def make(wrong: int) -> bytes:
        labels = np.arange(300) % 3
        site = (np.arange(300) >= 150).astype(int)
        labels[150 : 150 + wrong] += 1
        data: bytes = npz(features=rows(300), label=labels % 3, **{"slice:site": site})
        return data

    return make


def test_own_gate_passes_and_refuses(stage: Any, installed: Any, evaluation: Any) -> None:
    installed("judge")
    problem = stage.refused(evaluation=evaluation(30))
    assert (problem.gate, problem.code) == ("custom:fairness", "custom_gate_failed")
    assert (problem.figure, problem.bound) == (pytest.approx(0.2), 0.1)
    assert problem.detail == "Between two sites."
    reasons = {"custom:fairness": "site 1 is closed"}
    found = stage(evaluation=evaluation(30), overrides=reasons)["gap"]
    assert (found.passed, found.overridden) == (False, "site 1 is closed")
    stage.production = None
    assert stage(evaluation=evaluation(0))["gap"].passed


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("crash", "exit status 3"),
        ("fail", "no such column"),
        ("hang", "no result within"),
        ("nonsense", "no Finding"),
        ("silent", "0 findings"),
        ("missing", "AttributeError"),
    ],
)
def test_own_gate_that_gives_no_verdict(
    stage: Any, installed: Any, monkeypatch: pytest.MonkeyPatch, function: str, said: str
) -> None:
    if function == "hang":
        monkeypatch.setattr("fleet_server.releases.measuring.WALL_S", 1.0)
    installed(function)
    problem = stage.refused(overrides={"custom:fairness": "it will do"})
    assert (problem.gate, problem.code) == ("custom:fairness", "custom_gate_broke")
    assert said in problem.detail


def test_own_gate_leaves_no_process_behind(stage: Any, installed: Any) -> None:
    installed("linger")
    left = int(stage()["left"].figure)
    end = time.monotonic() + 60
    while not _ended(left):
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.01)


def _ended(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the latter if it goes while it is read
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def test_own_gate_reaches_no_network(stage: Any, installed: Any) -> None:
    installed("phone")
    assert "Error" in stage.refused().detail

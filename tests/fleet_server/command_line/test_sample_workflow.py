"""Guards from a sample workflow that nobody ever ran: each of its steps is run here, in order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
WORKFLOW = ROOT / "packaging" / "github" / "edgefleet-release.yml"
# What GitHub provides; everything else is run.
PROVIDED = {"actions/checkout", "actions/setup-python"}
EXPRESSION = re.compile(r"\$\{\{\s*([A-Za-z0-9_.]+)\s*\}\}")
STEP_S = 240
SHA = "4f1c0c8a9be24d0e4f1c0c8a9be24d0e4f1c0c8a"
TRAIN = """
import pathlib, shutil, sys
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True)
shutil.copy("model.onnx", folder)
for role in ("calibration", "golden"):
    shutil.copy("rows.npz", folder / f"{role}.npz")
(folder / "metadata.json").write_text('{"licence": "MIT", "metrics": {"accuracy": 0.97}}')
"""


@dataclass
class Runner:
    """Does what GitHub's runner does with a job of one workflow."""

    folder: Path
    expressions: dict[str, str]
    environment: dict[str, str]
    skipped: list[str] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)

    def run(self, workflow: dict) -> None:
        (job,) = workflow["jobs"].values()
        assert job["defaults"]["run"]["shell"] == "bash"
        for step in job["steps"]:
            if "uses" in step:
                self.skipped.append(step["uses"].partition("@")[0])
                continue
            always = step.get("if") == "always()"
            assert always or "if" not in step, "a condition that this test does not know"
            if always or not any(self.codes.values()):
                self._step(step, {**workflow["env"], **step.get("env", {})})

    def _step(self, step: dict, variables: dict[str, str]) -> None:
        output = self.folder / "output"
        output.write_text("")
        filled = {name: self._fill(value) for name, value in variables.items()}
        # The shell that GitHub documents for "shell: bash".
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", self._fill(step["run"])],
            env={**self.environment, **filled, "GITHUB_OUTPUT": str(output)},
            cwd=self.folder / "checkout",
            capture_output=True,
            text=True,
            timeout=STEP_S,
            check=False,
        )
        self.codes[step["name"]] = done.returncode
        self.said[step["name"]] = done.stdout + done.stderr
        for line in output.read_text().splitlines():
            name, _, value = line.partition("=")
            self.expressions[f"steps.{step['id']}.outputs.{name}"] = value

    def _fill(self, text: str) -> str:
        # The output of a step that did not run is empty, as GitHub has it.
        return EXPRESSION.sub(
            lambda found: (
                self.expressions.get(found[1], "")
                if found[1].startswith("steps.")
                else self.expressions[found[1]]
            ),
            text,
        )


@pytest.fixture
def runner(server: Any, classifier_files: dict[str, Path], tmp_path: Path) -> Runner:
    """A checkout of a repository that trains the small classifier, and CI's own token."""
    folder = tmp_path / "runner"
    checkout = folder / "checkout"
    checkout.mkdir(parents=True)
    for path in classifier_files.values():
        shutil.copy(path, checkout)
    (checkout / "train.py").write_text(TRAIN)
    (checkout / "requirements.lock").write_text("# The training needs what is there.\n")
    (checkout / "VERSION").write_text("1.4.0\n")
    request = {"user": "ci", "roles": ["operator"], "models": ["digits"]}
    made = server.client.post("/v1/tokens", json=request)
    assert made.status_code == 201, made.text
    return Runner(
        folder,
        {
            "vars.EDGEFLEET_URL": server.settings.url,
            "secrets.EDGEFLEET_TOKEN": made.json()["token"],
        },
        {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            # What is installed must do: nothing is fetched.
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "GITHUB_RUN_ID": "777",
            "GITHUB_RUN_NUMBER": "12",
            "GITHUB_RUN_ATTEMPT": "1",
            "GITHUB_SHA": SHA,
            "GITHUB_REF_NAME": "main",
            "GITHUB_REPOSITORY_OWNER": "edge-team",
            "GITHUB_STEP_SUMMARY": str(folder / "summary"),
        },
    )


@pytest.fixture
def workflow() -> dict:
    found: dict = yaml.safe_load(WORKFLOW.read_text())
    return found


def test_commit_becomes_a_staged_release(server: Any, runner: Runner, workflow: dict) -> None:
    runner.run(workflow)
    assert set(runner.codes.values()) == {0}, runner.said
    assert list(runner.codes) == ["Install", "Train", "Stage", "Report"]
    assert set(runner.skipped) == PROVIDED
    release = server.client.get("/v1/models/digits/releases/1.4.0-build.12.1").json()
    assert (release["state"], release["stage"], release["pushed_by"]) == ("staged", "staging", "ci")
    known = release["metadata"]
    assert (known["git_commit"], known["licence"], known["tags"]) == (SHA, "MIT", ["branch:main"])
    assert "digits 1.4.0-build.12.1  staged" in (runner.folder / "summary").read_text()
    # What CI may do ends here.
    token = {"Authorization": f"Bearer {runner.expressions['secrets.EDGEFLEET_TOKEN']}"}
    path = "/v1/models/digits/releases/1.4.0-build.12.1/promote"
    refused = server.anonymous.post(path, json={"reason": "x"}, headers=token)
    assert refused.status_code == 403


def test_commit_whose_model_a_gate_refuses(server: Any, runner: Runner, workflow: dict) -> None:
    (runner.folder / "checkout" / "model.onnx").write_bytes(b"no model")
    runner.run(workflow)
    assert runner.codes == {"Install": 0, "Train": 0, "Stage": 3, "Report": 0}, runner.said
    assert "::error::digits 1.4.0-build.12.1 was refused" in runner.said["Stage"]
    assert "refused    examination" in (runner.folder / "summary").read_text()


@pytest.mark.parametrize(("code", "ends", "word"), [(5, 0, "::warning::"), (4, 4, "::error::")])
def test_workflow_tells_exit_codes_apart(
    runner: Runner, workflow: dict, code: int, ends: int, word: str
) -> None:
    # A command that ends as it is told stands in for edgefleet; what the server does is above.
    stub = runner.folder / "bin" / "edgefleet"
    stub.parent.mkdir()
    stub.write_text(f"#!/bin/sh\nexit {code}\n")
    stub.chmod(0o755)
    runner.environment["PATH"] = f"{stub.parent}{os.pathsep}{runner.environment['PATH']}"
    steps = workflow["jobs"]["stage"]["steps"]
    workflow["jobs"]["stage"]["steps"] = [step for step in steps if step.get("id") == "stage"]
    runner.run(workflow)
    assert runner.codes == {"Stage": ends}
    assert word in runner.said["Stage"]
    first = runner.expressions["steps.stage.outputs.version"]
    runner.codes.clear()
    runner.environment["GITHUB_RUN_ATTEMPT"] = "2"
    runner.run(workflow)
    again = runner.expressions["steps.stage.outputs.version"]
    assert (first, again) == ("1.4.0-build.12.1", "1.4.0-build.12.2"), "it cannot be run again"


def test_training_that_fails_is_not_reported_as_a_release(runner: Runner, workflow: dict) -> None:
    (runner.folder / "checkout" / "train.py").write_text("raise SystemExit(1)\n")
    steps = workflow["jobs"]["stage"]["steps"]
    workflow["jobs"]["stage"]["steps"] = [step for step in steps if step.get("name") != "Install"]
    runner.run(workflow)
    assert runner.codes == {"Train": 1, "Report": 0}
    assert not (runner.folder / "summary").exists()

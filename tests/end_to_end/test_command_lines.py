"""Operators and devices by their command lines, each command a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator import digits
from simulator.digits import TrainedModel
from tests.end_to_end.town import (
    DEADLINE_S,
    DEVICES,
    FIRST,
    FULL,
    GOOD,
    SOURCES,
    Said,
    Town,
    goes_on_predicting,
    plan,
    run,
    running,
    stage,
    wait_for_versions,
    wait_until,
)

pytestmark = pytest.mark.slow

ENDLESS_CANARY = stage("canary", "canary", 50, soak_ms=500_000)


def written(plan_of: dict[str, Any], folder: Path) -> str:
    path = folder / "plan.json"
    path.write_text(json.dumps(plan_of))
    return str(path)


def test_operator_cannot_stop_a_rollout_by_the_command_line(town: Town, tmp_path: Path) -> None:
    town.edgefleet("cohort", "create", "shop", "--label", "cohort=shop")
    with town.fleet("shop") as fleet:
        start = ("rollout", "start", digits.MODEL)
        direct = written(plan(FULL), tmp_path)
        first = town.edgefleet(*start, FIRST, "--cohort", "shop", "--plan", direct, "--json").json
        assert town.wait_for_end(first["id"])["brief"]["state"] == "completed"

        endless = written(plan(ENDLESS_CANARY, FULL), tmp_path)
        wanted = (digits.MODEL, GOOD, "--cohort", "shop", "--plan", endless, "--json")
        made = town.edgefleet("rollout", "create", *wanted).json
        assert made["state"] == "draft"
        rollout = made["id"]
        assert town.edgefleet("rollout", "start", rollout, "--json").json["state"] == "scheduled"
        wait_until(
            lambda: running(town, fleet) == {FIRST: DEVICES // 2, GOOD: DEVICES // 2},
            "the canaries to have the release",
        )
        assert town.edgefleet("rollout", "pause", rollout, "--json").json["state"] == "paused"
        again = town.edgefleet("rollout", "pause", rollout, "--json")
        assert again.code == 1
        assert json.loads(again.out)["error"]["status"] == 409
        assert town.edgefleet("rollout", "resume", rollout, "--json").json["state"] == "running"

        back = ("rollout", "rollback", rollout, "--reason", "customers complain", "--json")
        assert town.edgefleet(*back).json["state"] == "rolling_back"
        watched = town.edgefleet("rollout", "watch", rollout, "--until-done", "--json")
        assert watched.code == 3
        last = json.loads(watched.out.splitlines()[-1])
        assert last["brief"]["state"] == "rolled_back"
        assert last["rollback"]["confirmed"] == DEVICES
        wait_for_versions(town, fleet, {FIRST: DEVICES})
        assert "customers complain" in json.dumps(town.ask("GET", "/v1/audit"))

        # Abort is another thing: who has changed stays so.
        aborted = town.edgefleet("rollout", "start", *wanted).json["id"]
        mixed = {FIRST: DEVICES // 2, GOOD: DEVICES // 2}
        wait_until(lambda: running(town, fleet) == mixed, "the canaries to have it again")
        assert town.edgefleet("rollout", "abort", aborted, "--json").json["state"] == "aborted"
        assert town.edgefleet("rollout", "watch", aborted, "--until-done", "--json").code == 4
        goes_on_predicting(fleet)
        wait_until(lambda: running(town, fleet) == mixed, "the last device to follow")
        listed = town.edgefleet("rollout", "list", "--json").json
        states = {item["id"]: item["state"] for item in listed}
        assert (states[rollout], states[aborted]) == ("rolled_back", "aborted")


def test_release_pushed_by_the_command_line_is_another(
    town: Town, models: dict[str, TrainedModel], tmp_path: Path
) -> None:
    model = models[GOOD]
    (tmp_path / "model.onnx").write_bytes(model.model)
    for name in ("calibration", "golden", "baseline"):
        arrays: dict[str, Any] = {digits.INPUT: getattr(model, name)}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    words = ["model", "push", "pushed", str(tmp_path / "model.onnx"), "--version", GOOD]
    for name in ("calibration", "golden", "baseline"):
        words += [f"--{name}", str(tmp_path / f"{name}.npz")]
    release = town.edgefleet(*words, "--wait", "--json").json
    assert release["state"] == "staged"
    manifest = town.http.get(f"/v1/store/manifests/pushed/{release['digest']}.json")
    assert manifest.is_success
    again = town.edgefleet(*words, "--json")
    assert again.code == 1
    assert json.loads(again.out)["error"]["status"] == 409


class Device:
    """A device by ``device-agent`` alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __call__(self, command: str, *words: str) -> Said:
        return run("device_agent.command_line", command, *words, "--folder", self._folder)

    @contextmanager
    def running(self, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        words = [sys.executable, "-m", "device_agent.command_line", "run", "--folder", self._folder]
        with log.open("ab") as out:
            process = subprocess.Popen(words, stdout=out, stderr=out, cwd=SOURCES)
        try:
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                assert process.wait(DEADLINE_S) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


def test_device_by_its_command_line_does_not_keep_up(town: Town, tmp_path: Path) -> None:
    town.make_cohort("kiosk")
    device = Device(tmp_path / "device")
    log = tmp_path / "agent.log"
    assert device("status").code == 1  # it has not joined a fleet

    words = ("device", "token", "--label", "cohort=kiosk", "--name", "kiosk-1", "--json")
    token = town.edgefleet(*words).json["token"]
    assert device("enroll", token, "--name", "kiosk-1").code == 0
    refused = Device(tmp_path / "another")("enroll", token, "--name", "kiosk-1")
    assert refused.code == 1  # the token was good for one
    assert "token" in refused.err

    def online() -> bool:
        return bool(town.device("kiosk-1")["online"])

    direct = {**FULL, "minimum_devices": 1, "minimum_predictions": 0}
    with device.running(log) as process:
        wait_until(online, "the device to connect")
        town.start_rollout("kiosk", FIRST, plan(direct))
        wait_until(lambda: town.active_on("kiosk-1") == FIRST, "the device to have its release")
        process.kill()
        process.wait()
        wait_until(lambda: not online(), "the broker to say that the device is gone")
    shown = device("status", "--json").json
    assert shown["models"][digits.MODEL]["active"] == town.digests[FIRST]
    with device.running(log):
        wait_until(online, "the device to come back")
        assert town.active_on("kiosk-1") == FIRST
        findings = device("doctor", "--json").json
        assert [item for item in findings if not item["well"]] == []
    assert device("status").out.splitlines()[0] == "kiosk-1 of fleet home"
    wait_until(lambda: not online(), "the device to have left in order")

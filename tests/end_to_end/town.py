"""A town for whole fleets: the real server as a process of its own, and how a test speaks to it.

Devices are the simulator's live fleets, or ``device-agent`` itself. Nothing here is replaced or
shortened but the plans: the stages last for seconds, by the same statistics.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from simulator import digits
from simulator.digits import TrainedModel
from simulator.live.fleet import LiveFleet

DEADLINE_S = 90.0
"""For one wait. Much more than an idle machine needs: what is tested is never how fast it is."""

DEVICES = 8
FIRST, GOOD, BAD = "1.0.0", "1.1.0", "2.0.0"
SOURCES = Path(__file__).parents[2]

Json = dict[str, Any]


def stage(name: str, kind: str, percent: float, *, soak_ms: int = 1_500) -> Json:
    return {
        "name": name,
        "kind": kind,
        "percent": percent,
        "soak_ms": soak_ms,
        "minimum_devices": 3,
        "minimum_predictions": 300,
        "deadline_ms": 600_000,
    }


CANARY = stage("canary", "canary", 50)
FULL = stage("full", "full", 100)


def plan(*stages: Json, **guardrails: Any) -> Json:
    """A plan for eight devices in a hurry. With four of them in each arm the smallest p that there
    can be is 1/70, so alpha is as large as its parts have to be. What depends on how busy the
    machine is, latency and silence, is judged generously.
    """
    return {
        "name": "hurried",
        "stages": list(stages),
        "report_every_ms": 300,
        "device_soak_ms": 500,
        "lookback_ms": 3_600_000,
        "alpha": 0.2,
        "looks": 1,
        "guardrails": {
            "silence_grace_ms": 120_000,
            "latency_ratio": 50.0,
            "drift_margin": 0.15,
            "minimum_rows": 20,
            **guardrails,
        },
    }


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)


def run(*command: str, environment: Mapping[str, str] | None = None) -> Said:
    """Run a program of this environment to its end."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd=SOURCES,
        env={**os.environ, **(environment or {})},
    )
    return Said(done.returncode, done.stdout, done.stderr)


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited in vain for {what}"
        time.sleep(0.05)


class Town:
    """A server that can be started, killed and started again on the same folder and port."""

    def __init__(
        self, folder: Path, *, port: int, images: Path, broker: str, database_url: str = ""
    ) -> None:
        self.folder = folder
        self.data_dir = folder / "server"
        self.log = folder / "server.log"
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=DEADLINE_S)
        self.digests: dict[str, str] = {}
        self._images = images
        self._command = [sys.executable, "-m", "fleet_server.command_line"]
        self._command += ["--data-dir", str(self.data_dir), "server"]
        self._command += ["--port", str(port), "--device-port", "0"]
        self._command += ["--broker", broker, "--controller-interval-ms", "100"]
        self._command += ["--log-file", str(self.log)]
        self._command += ["--database-url", database_url] if database_url else []
        self._server: subprocess.Popen[bytes] | None = None

    # -- the server's process -----------------------------------------------------------------

    def start(self, until: str = "/ready") -> None:
        """Start the server and wait until it can do its work, or another probe says yes."""
        with (self.folder / "server.out").open("ab") as out:
            self._server = subprocess.Popen(self._command, stdout=out, stderr=out, cwd=SOURCES)
        wait_until(lambda: self._answers(until), "the server to be ready")
        self.http.headers["Authorization"] = f"Bearer {self.token}"

    def kill(self) -> None:
        """End the server as a power cut does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the server in order."""
        self._end(signal.SIGTERM)

    def lose_and_restore(self, backup: Path) -> None:
        """A power cut, and nothing is left but a backup: the server comes up from it, marked."""
        self.kill()
        # The power is gone for a Mosquitto that the server had started, too.
        with suppress(FileNotFoundError):
            pid = (self.data_dir / "broker" / "mosquitto.pid").read_text()
            os.kill(int(pid), signal.SIGKILL)
        self.data_dir.rename(self.folder / "lost")
        said = self.edgefleet("restore", str(backup))
        assert said.code == 0, said
        assert "trust after-restore" in said.out
        self.start(until="/health")

    def close(self) -> None:
        if self._server is not None:
            self.stop()
        self.http.close()

    def _end(self, number: int) -> None:
        assert self._server is not None
        server, self._server = self._server, None
        server.send_signal(number)
        try:
            server.wait(DEADLINE_S)
        finally:
            server.kill()

    def _answers(self, probe: str) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, self.last_words()
        try:
            return self.http.get(probe).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def last_words(self) -> str:
        logs = [self.folder / "server.out", self.log]
        return "\n".join(log.read_text()[-3000:] for log in logs if log.exists())

    # -- what operators do --------------------------------------------------------------------

    @property
    def token(self) -> str:
        return (self.data_dir / "admin-token").read_text().strip()

    def edgefleet(self, *words: str) -> Said:
        """Run the command line of operators."""
        return run("fleet_server.command_line", "--data-dir", str(self.data_dir), *words)

    def ask(self, method: str, path: str, **given: Any) -> Any:
        answer = self.http.request(method, path, **given)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def push(self, models: Iterable[TrainedModel], name: str = digits.MODEL) -> None:
        """Push releases and wait until they are staged."""
        path = f"/v1/models/{name}/releases"
        for model in models:
            parts = {"calibration": model.calibration, "golden": model.golden}
            parts["baseline"] = model.baseline
            files = {name: (f"{name}.npz", _npz(images)) for name, images in parts.items()}
            files["model"] = ("model.onnx", model.model)
            self.ask("POST", path, data={"version": model.version}, files=files)
            shown: Json = {}

            def staged(path: str = f"{path}/{model.version}", shown: Json = shown) -> bool:
                shown.update(self.ask("GET", path))
                return bool(shown["state"] != "staging")

            wait_until(staged, f"{model.version} to be staged")
            assert shown["state"] == "staged", shown
            if name == digits.MODEL:
                self.digests[model.version] = shown["digest"]

    def make_cohort(self, name: str) -> None:
        """A cohort of the devices that are labelled with its name."""
        body = {"name": name, "selector": {"cohort": name}, "priority": 10}
        self.ask("POST", "/v1/cohorts", json=body)

    @contextmanager
    def fleet(
        self, cohort: str, *, devices: int = DEVICES, prefix: str = "", rate: float = 20.0
    ) -> Iterator[LiveFleet]:
        """Real agents in a process of their own, connected; one that ran before goes on.

        Each is asked for ``rate`` predictions a second.
        """
        prefix = prefix or cohort
        fleet = LiveFleet(
            url=self.url,
            token=self.token,
            devices=devices,
            processes=1,
            folder=self.folder / prefix,
            images=str(self._images),
            labels={"cohort": cohort},
            prefix=prefix,
            rate=rate,
        )

        def connected() -> bool:
            shown = self.ask("GET", "/v1/devices", params={"cohort": cohort})["devices"]
            here = [item for item in shown if item["name"].startswith(f"{prefix}-")]
            return sum(item["online"] for item in here) == devices

        with fleet:
            wait_until(connected, f"the devices of {prefix} to connect")
            yield fleet

    # -- rollouts -----------------------------------------------------------------------------

    def start_rollout(self, cohort: str, version: str, wanted: Json) -> str:
        body = {"model": digits.MODEL, "version": version, "cohort": cohort, "plan": wanted}
        made = self.ask("POST", "/v1/rollouts", json={**body, "start": True})
        return str(made["id"])

    def roll_out(self, cohort: str, version: str, wanted: Json | None = None) -> Json:
        """Start a rollout and return it when it has ended or is held, however that was."""
        return self.wait_for_end(self.start_rollout(cohort, version, wanted or plan(FULL)))

    def show(self, rollout: str) -> Json:
        shown: Json = self.ask("GET", f"/v1/rollouts/{rollout}")
        return shown

    def wait_for_end(self, rollout: str) -> Json:
        shown: Json = {}

        def ended() -> bool:
            shown.update(self.show(rollout))
            brief = shown["brief"]
            return bool(brief["ended_ms"]) or bool(brief["held"])

        wait_until(ended, f"rollout {rollout} to end")
        return shown

    def catch_stage(self, rollout: str, name: str, *states: str) -> bool:
        """Wait for a stage to be in one of these states; False if nobody looked in time."""
        shown: Json = {}

        def now() -> str:
            return next(str(item["state"]) for item in shown["stages"] if item["name"] == name)

        def over() -> bool:
            shown.update(self.show(rollout))
            return now() in (*states, "passed", "failed") or bool(shown["brief"]["ended_ms"])

        wait_until(over, f"stage {name} to be {' or '.join(states)}")
        return now() in states

    def device(self, name: str) -> Json:
        shown: Json = self.ask("GET", f"/v1/devices/{name}")
        return shown

    def active_on(self, name: str) -> str:
        """The release of the digits that answers on a device, as the server knows it."""
        known = {digest: version for version, digest in self.digests.items()}
        progress = self.device(name)["progress"]
        return next(
            (known[item["active"]] for item in progress if item["active"] in known), "nothing"
        )


def running(town: Town, fleet: LiveFleet) -> dict[str, int]:
    """How many devices of a fleet answer with which version, by their own account."""
    known = {digest: version for version, digest in town.digests.items()}
    counts: dict[str, int] = {}
    for digest in fleet.status().active.values():
        version = known.get(digest, "nothing")
        counts[version] = counts.get(version, 0) + 1
    return counts


def wait_for_versions(town: Town, fleet: LiveFleet, wanted: dict[str, int]) -> None:
    """Wait until the devices answer with these versions. A rollout has ended before the last
    device has changed: a plan asks for most of them.
    """
    wait_until(lambda: running(town, fleet) == wanted, f"{wanted}")


def goes_on_predicting(fleet: LiveFleet) -> None:
    """Wait until every device can have answered again, and see that no call has failed."""
    before = fleet.status().predictions
    wait_until(
        lambda: fleet.status().predictions >= before + 10 * len(fleet.status().active),
        "more predictions",
    )
    status = fleet.status()
    assert status.failed_inferences == 0, status.failures


def _npz(images: digits.Images) -> bytes:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {digits.INPUT: images}
    np.savez(buffer, **arrays)
    return buffer.getvalue()

"""The server of these tests as a process of its own, its releases, and how a test speaks to it.

Releases are written through the releases service with manifests of our own: what staging does has
tests elsewhere, and the devices here load no models.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx

from device_agent.core.state import Record
from fleet_contract import codec
from fleet_contract.enrolment import read_token
from fleet_contract.manifest import (
    Baseline,
    FileRef,
    GoldenVectors,
    Lineage,
    Manifest,
    Requirements,
    Runtime,
    TensorSpec,
    Variant,
)
from fleet_contract.sketches.features import FeatureSketches
from fleet_contract.trust.directive import ReleaseRef
from fleet_server.clock import SystemClock
from fleet_server.data_folder import LOCK_FILE
from fleet_server.database import Database
from fleet_server.releases import service as releases
from fleet_server.releases.store import Store
from fleet_server.releases.uploads import Options, Upload
from fleet_server.trust.authority.authority import ANCHORS_FILE
from fleet_server.trust.catalogue.opening import open_catalogue
from fleet_server.trust.keyring import open_keyring
from simulator.world.behaviour import SCHEMA
from tests.fleet_server.device_key import DeviceKey
from tests.kill_points.light_fleet import CAPABILITIES, Behaviour, LightFleet, outputs

FLEET, COHORT, MODEL = "home", "default", "toy"
DEADLINE_S = 150.0
REPORT_EVERY_MS = 400

Json = dict[str, Any]


def stage(name: str, kind: str, percent: float, *, minimum_predictions: int = 200) -> Json:
    return {
        "name": name,
        "kind": kind,
        "percent": percent,
        "soak_ms": 600,
        "minimum_predictions": minimum_predictions,
        "deadline_ms": 600_000,
    }


def plan(*stages: Json) -> Json:
    return {
        "name": "hurried",
        "stages": list(stages),
        "report_every_ms": REPORT_EVERY_MS,
        "device_soak_ms": 300,
        "alpha": 0.2,
        "looks": 1,
        "guardrails": {"silence_grace_ms": 120_000, "minimum_rows": 20},
    }


class ServerRoom:
    """A data folder with three releases, and the server process that works on it."""

    def __init__(self, folder: Path, port: int, broker: str) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.anchors = self.data_dir / "pki" / ANCHORS_FILE
        self.url = f"http://127.0.0.1:{port}"
        self._arguments = [str(self.data_dir), str(port), broker, str(folder)]
        self._process: subprocess.Popen[bytes] | None = None
        self.releases = self._write_releases()
        self.http = httpx.Client(base_url=self.url, timeout=DEADLINE_S)

    # -- the process --------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        with (self.folder / "supervisor.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.kill_points.doomed_server", *self._arguments],
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[2],
            )
        try:
            self.wait_ready()
            token = (self.data_dir / "admin-token").read_text().strip()
            self.http.headers["Authorization"] = f"Bearer {token}"
            yield
        finally:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(DEADLINE_S)
            self.http.close()

    def arm(self) -> None:
        """From now on it dies at every moment once."""
        ((epoch,),) = self.rows("SELECT max(epoch) FROM control_message")
        fresh = self.folder / "armed.new"
        fresh.write_text(str(epoch))
        fresh.rename(self.folder / "armed")

    def kill(self) -> None:
        """End this life of the server at once; its supervisor starts the next."""
        os.kill(int((self.data_dir / LOCK_FILE).read_text()), signal.SIGKILL)

    def diary(self) -> list[str]:
        return (self.folder / "diary").read_text().splitlines()

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.last_words()
            return self._is_ready()

        self.wait_until(ready, "the server to be ready")

    def _is_ready(self) -> bool:
        try:
            return self.http.get("/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def last_words(self) -> str:
        logs = [self.folder / "supervisor.log", self.folder / "server.log"]
        return "\n".join(log.read_text()[-3000:] for log in logs if log.exists())

    def wait_until(self, condition: Callable[[], bool], what: str) -> float:
        """Wait, and return how many seconds that took."""
        began_s = time.monotonic()
        while not condition():
            assert time.monotonic() < began_s + DEADLINE_S, f"waited for {what}"
            time.sleep(0.02)
        return time.monotonic() - began_s

    # -- the API, for a client whose server may die at any time -------------------------------

    def ask(self, method: str, path: str, **given: Any) -> Any:
        """Call until the server lives long enough to answer: only for calls that may repeat."""
        while True:
            try:
                answer = self.http.request(method, path, **given)
            except httpx.TransportError:
                self.wait_ready()
                continue
            assert answer.is_success, answer.text
            return answer.json()

    def start_rollout(self, version: str, wanted: Json) -> str:
        """Create and start a rollout, exactly once whatever happens to the server meanwhile."""
        body = {"model": MODEL, "version": version, "cohort": COHORT, "plan": wanted, "start": True}
        while True:
            known = [row for row in self.ask("GET", "/v1/rollouts") if row["version"] == version]
            if known:
                assert len(known) == 1, known
                return str(known[0]["id"])
            try:
                answer = self.http.post("/v1/rollouts", json=body)
            except httpx.TransportError:
                self.wait_ready()
                continue
            assert answer.status_code == httpx.codes.CREATED, answer.text

    def wait_for_state(self, rollout: str, state: str) -> Json:
        def ended() -> bool:
            shown.clear()
            shown.update(self.ask("GET", f"/v1/rollouts/{rollout}"))
            now = shown["brief"]["state"]
            assert now == state or now not in ("paused", "completed", "rolled_back"), shown["brief"]
            return bool(now == state)

        shown: Json = {}
        self.wait_until(ended, f"rollout {rollout} to be {state}")
        self.wait_ready()  # and its last directive is out
        return shown

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Read the database as it is on disk."""
        with closing(sqlite3.connect(self.data_dir / "fleet.sqlite", timeout=10)) as database:
            return list(database.execute(query))

    def control_messages(self) -> dict[str, bytes]:
        """Topic → what the broker must hold, as it was decided."""
        return dict(self.rows("SELECT topic, payload FROM control_message"))

    def predictions(self) -> Counter[tuple[str, str, str]]:
        """(device, release, role) → predictions, as the server has them."""
        query = "SELECT device, release, role, predictions FROM window"
        counted: Counter[tuple[str, str, str]] = Counter()
        for *key, predictions in self.rows(query):
            counted[tuple(key)] += predictions
        return counted

    def bring_devices(self, fleet: LightFleet, count: int) -> None:
        """Enrol devices as real ones do, and let them boot."""
        records = []
        broker = ""
        for number in range(count):
            name = f"dev-{number:02}"
            made = self.ask("POST", "/v1/devices/tokens", json={"device": name})
            devices_url, key = read_token(made["token"]).server, DeviceKey()
            answer = key.enrol(devices_url, made["token"], name, CAPABILITIES, self.anchors)
            broker = answer.broker
            tls = key.context(self.anchors) if broker.startswith("mqtts:") else None
            records.append((Record(answer.fleet, answer.device, self._keyring.keyset), tls))
        behaviours = {release.ref.digest: release for release in self.releases.values()}
        fleet.add(records, broker, behaviours)

        def here() -> bool:
            shown = self.ask("GET", "/v1/devices")["devices"]
            return sum(device["online"] for device in shown) == count

        self.wait_until(here, "the devices to connect")

    # -- releases -----------------------------------------------------------------------------

    def _write_releases(self) -> dict[str, Behaviour]:
        """Write 1.0.0, 1.1.0 and 2.0.0, the last of which fails every second call."""
        clock = SystemClock()
        self.data_dir.mkdir(mode=0o700)
        database = Database(f"sqlite:///{self.data_dir / 'fleet.sqlite'}")
        database.migrate()
        open_catalogue(
            self.data_dir / "trust",
            may_make=True,
            random_bytes=clock.random_bytes,
            now_ms=clock.now_ms,
        )
        self._keyring = open_keyring(
            self.data_dir / "keys", fleet=FLEET, random_bytes=clock.random_bytes
        )
        store = Store(self.data_dir / "store")
        found = {}
        for counter, version in enumerate(("1.0.0", "1.1.0", "2.0.0"), start=1):
            manifest = _manifest(version, counter)
            digest = store.put_manifest(MODEL, codec.encode_json(manifest)).digest
            now_ms = clock.now_ms()
            with database.transaction() as session:
                upload = Upload("none", Options(MODEL, version), "0" * 64, 0)
                releases.register(
                    session, upload, user="test", correlation_id="setup", now_ms=now_ms
                )
                releases.mark_staged(
                    session,
                    MODEL,
                    version,
                    digest=digest,
                    manifest=manifest,
                    baseline=Baseline(FeatureSketches([], []), outputs(1000)),
                    statement="0" * 64,
                    card="0" * 64,
                    vouched=True,
                    now_ms=now_ms,
                )
            ref = ReleaseRef(f"manifests/{MODEL}/{digest}.json", digest)
            found[version] = Behaviour(ref, version, counter, broken=version == "2.0.0")
        database.close()
        return found


def _manifest(version: str, counter: int) -> Manifest:
    nothing = FileRef("0" * 64, 0)
    return Manifest(
        model=MODEL,
        version=version,
        release_counter=counter,
        created_ms=0,
        least_agent=1,
        variants=[Variant("int8", Runtime.ONNXRUNTIME, "int8", nothing, Requirements(opset=17))],
        inputs=[TensorSpec("x", "float32", [None, 4])],
        outputs=[TensorSpec("logits", "float32", [None, 10])],
        features=SCHEMA,
        golden=GoldenVectors(nothing, 0.9, 1.0),
        baseline=nothing,
        lineage=Lineage("0" * 64, None, {}, None),
    )

"""One real server, one real agent under load, and what an attacker inside the fleet can do.

The server runs on a thread of this process and the agent is the all-in-one one, with its real
connection, store, probe and runtime. What the device is asked to do by somebody who may ask is
written as the server writes it: a control row in a transaction, published by the publisher.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_agent.agent import Agent
from device_agent.inference.capabilities import tiny_model
from device_agent.shell.clock import SystemClock as DeviceClock
from device_agent.shell.identity import enrol
from device_agent.shell.store import Store as DeviceStore
from device_agent.shell.workshop import Workshop
from fleet_contract import codec, topics
from fleet_contract.features import FeatureSchema, FeatureSet
from fleet_contract.manifest import (
    FileRef,
    GoldenFile,
    GoldenVectors,
    Lineage,
    Manifest,
    Requirements,
    Runtime,
    TensorData,
    TensorSpec,
    Variant,
    artifact_path,
)
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust import envelope
from fleet_contract.trust.directive import (
    DIRECTIVE_TYPE,
    Activation,
    Directive,
    ReleaseRef,
    Starts,
)
from fleet_server import serving
from fleet_server.app import create_app
from fleet_server.broker.client import MqttClient
from fleet_server.broker.errors import ConnectionLostError
from fleet_server.broker.rules import PUBLISHER
from fleet_server.clock import Clock, SystemClock
from fleet_server.dispatch import service as dispatch
from fleet_server.dispatch.connection import BrokerAddress
from fleet_server.settings import Settings
from fleet_server.trust.authority.authority import ANCHORS_FILE
from tests.attacks.documents import Attack
from tests.attacks.feeder import INPUTS, OUTPUT, Feeder
from tests.attacks.insider import COHORT, DEVICE, FLEET, MODEL, Insider

TOPIC = topics.directive(FLEET, COHORT, MODEL)
ASSIGNMENT_TOPIC = topics.device(FLEET, DEVICE, DeviceChannel.ASSIGNMENT)
DEADLINE_S, AGAIN_S = 60.0, 1.0

Json = dict[str, Any]


class Battlefield:
    """``open`` starts everything, with a good release in front; ``close`` ends it.

    The broker is of that kind; the server goes by the clock, the device by the machine's.
    """

    def __init__(
        self,
        folder: Path,
        workshop: Workshop,
        *,
        broker: str = "embedded",
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        self._folder = folder
        self._workshop = workshop
        self.kind = broker
        self._settings = settings
        self._clock = clock or SystemClock()
        self._number = 0
        self._opset = 13

    def open(self) -> None:
        self.start_server()
        self.enrol()
        self.stable = self.release()
        self.direct(self.stable)
        self.boot()
        self.agent.wait_for(MODEL, digest=self.stable.digest, timeout_s=DEADLINE_S)
        self.feeder = Feeder(self.agent)
        self.wait_until(
            lambda: self.active_at_server() == self.stable.digest, "the first release to be known"
        )

    @property
    def anchors(self) -> Path:
        """What vouches for server and broker."""
        return self._folder / "data" / "pki" / ANCHORS_FILE

    @property
    def device_folder(self) -> Path:
        """Where the device keeps what it believes."""
        return self._folder / "devices" / DEVICE

    def boot(self) -> None:
        """Start the device."""
        self.agent = self.agent_in(self.device_folder)
        self.agent.start()

    def agent_in(self, folder: Path) -> Agent:
        """An agent that is not started yet, on a folder of its own."""
        return Agent.open(folder, workshop=self._workshop)

    def close(self) -> None:
        self.feeder.stop()
        self.agent.stop()
        self.stop_server()

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """What runs must answer as before, without a failed call, and the fleet go on after it."""
        before = self.feeder.answered
        yield
        self.restore()
        self.wait_until(lambda: self.feeder.answered > before + 5, "predictions to keep flowing")
        assert self.feeder.failures == []
        assert self.feeder.releases == {self.stable.digest}
        assert self.active_at_server() == self.stable.digest

    def stop_server(self) -> None:
        self.http.close()
        for server in self._servers:
            server.should_exit = True
        self._server.join(DEADLINE_S)
        assert not self._server.is_alive()

    # -- what an attacker inside can do -------------------------------------------------------

    def seal(
        self, document: object, key: Ed25519PrivateKey, *, kind: str = DIRECTIVE_TYPE
    ) -> bytes:
        """Sign with a key of one's own."""
        name = envelope.key_id(key.public_key().public_bytes_raw())
        return envelope.seal(kind, codec.encode_json(document), {name: key.sign})

    def signed(self, **changes: Any) -> bytes:
        """A directive that the director really signed, and that is wrong in other ways."""
        return self.keyring.sign_directive(self.directive(**changes))

    def scene(self) -> Insider:
        """What the table of attacks on control documents asks for."""
        self.restore()
        older = self.newest
        self.restore()
        return Insider(self, older)

    def publish(self, payload: bytes, topic: str = TOPIC) -> None:
        """Put a retained message on any topic, by the publisher's stolen certificate."""

        async def put() -> None:
            client = MqttClient(PUBLISHER)
            stolen = self.app.state.authority.client(PUBLISHER)
            await client.connect(self.broker.host, self.broker.port, tls=stolen)
            await client.publish(topic, payload, retain=True)
            await client.disconnect()

        while True:
            try:
                return asyncio.run(put())
            except ConnectionLostError:
                # The publisher has come back, and put the thief out.
                continue

    def directive(self, **changes: Any) -> Directive:
        """A directive as the server would write it now, with changes."""
        now_ms = self._clock.now_ms()
        fields: Json = {
            "fleet": FLEET,
            "cohort": COHORT,
            "model": MODEL,
            "generation": self.keyring.generation,
            "epoch": now_ms + 1_000_000,
            "issued_ms": now_ms,
            "expires_ms": now_ms + 86_400_000,
            "rollout": "",
            "salt": "0" * 32,
            "default": self.wanted,
            "arms": [],
            "activation": Activation.ACTIVE,
            "starts": Starts.OPEN,
            "spread_ms": 0,
            "soak_ms": 100,
            "report_every_ms": 500,
            "retry": self._number,
            "standby": None,
        }
        return Directive(**{**fields, **changes})

    @property
    def wanted(self) -> ReleaseRef:
        """What an attacker would like to run."""
        return ReleaseRef(f"manifests/{MODEL}/{'e' * 64}.json", "e" * 64)

    # -- what the fleet's owner does ----------------------------------------------------------

    def release(
        self,
        *,
        model: bytes | None = None,
        golden_output: list[float] | None = None,
        vouched: bool = True,
    ) -> ReleaseRef:
        """Put a release of a tiny model into the server's store; each has its own bytes.

        Unless it is not ``vouched``: then the repository of what exists does not know it.
        """
        self._number += 1
        if model is None:
            self._opset += 1
            model = tiny_model(opset=self._opset, ir_version=8)
        vectors = GoldenFile(
            [TensorData("x", "float32", [2], INPUTS["x"].tobytes())],
            [
                TensorData(
                    "y", "float32", [2], np.array(golden_output or OUTPUT, np.float32).tobytes()
                )
            ],
        )
        store = self.app.state.staging.store
        self.artifact: FileRef = store.put_artifact(MODEL, [model])
        golden = store.put_artifact(MODEL, [codec.encode_msgpack(vectors)])
        manifest = Manifest(
            model=MODEL,
            version=f"{self._number}.0.0",
            release_counter=self._number,
            created_ms=0,
            least_agent=0,
            variants=[
                Variant("cpu", Runtime.ONNXRUNTIME, "float32", self.artifact, Requirements())
            ],
            inputs=[TensorSpec("x", "float32", [2])],
            outputs=[TensorSpec("y", "float32", [2])],
            features=FeatureSchema(FeatureSet(), FeatureSet()),
            golden=GoldenVectors(golden, 0.0, 1e-6),
            baseline=FileRef("0" * 64, 0),
            lineage=Lineage("0" * 64, None, {}, None),
        )
        file = store.put_manifest(MODEL, codec.encode_json(manifest))
        if vouched:
            self.app.state.catalogue.publish(MODEL, file, [self.artifact, golden])
        return ReleaseRef(f"manifests/{MODEL}/{file.digest}.json", file.digest)

    def stored(self, path: str = "") -> Path:
        """The file of the server's store behind a path, by default the newest artifact."""
        return (
            self._folder / "data" / "store" / (path or artifact_path(MODEL, self.artifact.digest))
        )

    def direct(self, release: ReleaseRef) -> None:
        """Ask for a release, as a decision of the server does."""
        now_ms = self._clock.now_ms()
        with self.app.state.database.transaction() as session:
            epoch = dispatch.next_epoch(session, FLEET, now_ms)
            self._number += 1
            signed = self.keyring.sign_directive(
                self.directive(epoch=epoch, default=release, standby=release)
            )
            dispatch.put_control(
                session, fleet=FLEET, topic=TOPIC, epoch=epoch, payload=signed, now_ms=now_ms
            )
        self.app.state.wake_publisher()
        self.newest, self.newest_epoch = signed, epoch

    def restore(self) -> None:
        """Ask for the good release again, whatever was asked for in a test."""
        self.direct(self.stable)
        self.wait_until(
            lambda: self._progress().get("epoch") == self.newest_epoch, "the device to follow"
        )

    # -- what the server knows ----------------------------------------------------------------

    def device(self, name: str = DEVICE) -> Json:
        answer = self.http.get(f"/v1/devices/{name}")
        assert answer.status_code == httpx.codes.OK, answer.text
        shown: Json = answer.json()
        return shown

    def active_at_server(self) -> str:
        return str(self._progress().get("active", ""))

    def expect_refusal(self, reason: str, payload: bytes, topic: str = TOPIC) -> None:
        """Publish this; the device must refuse it, and the server must learn why."""
        # Again and again: a refusal is told anew once the one before is known to be stored.
        since_ms, published_s = self._clock.now_ms(), -AGAIN_S

        def told() -> bool:
            nonlocal published_s
            if time.monotonic() >= published_s + AGAIN_S:
                self.publish(payload, topic)
                published_s = time.monotonic()
            return any(
                (refusal["topic"], refusal["reason"]) == (topic, reason)
                and refusal["at_ms"] >= since_ms
                for refusal in self.device()["refusals"]
            )

        self.wait_until(told, f"the server to learn of {reason}")

    def withstand(self, attack: Attack) -> None:
        """Carry an attack of the table out; what runs is looked at by the fixture ``attacked``."""
        place, payload = attack.make(self.scene())
        topic = {
            "directive": TOPIC,
            "assignment": ASSIGNMENT_TOPIC,
            "stop": topics.stop(FLEET),
        }.get(place) or topics.directive(FLEET, place, MODEL)
        self.expect_refusal(attack.reason.value, payload, topic)
        self.publish(b"", topic)

    def expect_failure(self, release: ReleaseRef, *reasons: str) -> None:
        """Ask for this release; the device must give it up, and the server must learn why."""
        self.direct(release)

        def told() -> bool:
            progress = self._progress()
            return progress.get("target") == release.digest and progress["reason"] in reasons

        self.wait_until(told, f"the server to learn of {' or '.join(reasons)}")
        assert self.active_at_server() == self.stable.digest

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}: {self.device()}"
            time.sleep(0.02)

    def _progress(self) -> Json:
        return next((item for item in self.device()["progress"] if item["model"] == MODEL), {})

    # -- starting -----------------------------------------------------------------------------

    def start_server(self) -> None:
        listeners = [serving.listen("127.0.0.1", 0, "port") for _ in range(2)]
        port, device_port = (listener.getsockname()[1] for listener in listeners)
        settings = Settings(
            data_dir=self._folder / "data",
            port=port,
            device_port=device_port,
            broker=self.kind,
            **self._settings,
        )
        self.app = create_app(settings, self._clock)
        started = threading.Event()

        async def serve() -> None:
            with listeners[0], listeners[1]:
                async with self.app.router.lifespan_context(self.app):
                    self._servers = serving.servers(self.app)
                    started.set()
                    both = zip(self._servers, listeners, strict=True)
                    await asyncio.gather(*(one.serve(sockets=[where]) for one, where in both))

        self._server = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self._server.start()
        assert started.wait(DEADLINE_S), "the server did not start"
        self.keyring = self.app.state.keyring
        self.broker = BrokerAddress.parse(self.app.state.broker_url)
        token = (settings.data_dir / "admin-token").read_text().strip()
        self.http = httpx.Client(
            base_url=settings.url, headers={"Authorization": f"Bearer {token}"}, timeout=DEADLINE_S
        )

    def token(self, **wanted: Any) -> str:
        """What an operator gives to who brings devices in."""
        made = self.http.post("/v1/devices/tokens", json=wanted)
        assert made.status_code == httpx.codes.CREATED, made.text
        return str(made.json()["token"])

    def enrol(self, name: str = DEVICE, token: str = "") -> Path:
        """Have a device join by the agent's own code, and return its folder."""
        folder = self.device_folder.with_name(name)
        store = DeviceStore(folder, reserve_bytes=0)
        given = token or self.token(device=name)
        enrol(store, given, name, self._workshop.capabilities, DeviceClock())
        return folder

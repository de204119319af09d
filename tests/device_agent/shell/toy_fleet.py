"""A fleet server of a few lines for the agent's tests: it signs, serves files and keeps a broker.

Files are served with ranges, and each path can be made to misbehave. The models are the tiny one
of ``device_agent.inference.capabilities``, told apart by their opset.
"""

import contextlib
import hashlib
import os
import shutil
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from device_agent.inference.capabilities import tiny_model
from fleet_contract import codec, topics
from fleet_contract.enrolment import (
    ANCHORS_PATH,
    EnrolmentAnswer,
    EnrolmentRequest,
    EnrolmentToken,
    RenewalAnswer,
    RenewalRequest,
    write_token,
)
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
    manifest_path,
)
from fleet_contract.messages.presence import Presence, read_presence
from fleet_contract.messages.progress import Progress, read_progress
from fleet_contract.messages.report import Ack, Report, WindowAck, read_report
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust import envelope
from fleet_contract.trust.directive import (
    ASSIGNMENT_TYPE,
    DIRECTIVE_TYPE,
    STOP_TYPE,
    Activation,
    Assignment,
    Directive,
    ReleaseRef,
    Starts,
    Stop,
)
from fleet_contract.trust.keyset import KEYSET_PATH, Keyset, PublicKey
from fleet_server.trust.catalogue.opening import open_catalogue
from fleet_server.trust.catalogue.repository import Catalogue
from tests.device_agent.shell.toy_authority import ToyAuthority
from tests.device_agent.shell.toy_broker import WAIT_S, ToyBroker
from tests.device_agent.shell.toy_web import Handler, QuietServer

FLEET, COHORT, DEVICE, MODEL = "home", "lab", "device-1", "digits"
SECRET = "5" * 64
INPUTS = {"x": np.array([1.5, -2.0], np.float32)}
OUTPUT = [3.0, -4.0]


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


class ToyFleet:
    """Keys, files, a broker and a web server; ``close`` when done."""

    def __init__(self, *, with_broker: bool = True, secure: bool = False) -> None:
        self.secure = secure
        self.authority = ToyAuthority()
        self.director = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
        self.generation = 1
        self.folder = Path(tempfile.mkdtemp(prefix="toy-fleet-"))
        self.ahead_ms = 0
        self.catalogue = self.new_catalogue("trust")
        self.epoch = int(time.time() * 1000)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.posts = 0
        self.misbehave: dict[str, Callable[[Handler], bool]] = {}
        self.bench_answer: Callable[[str, bytes], tuple[int, bytes]] = lambda *_: (404, b"{}")
        self.acknowledging = True
        self.progress: list[Progress] = []
        self.reports: list[Report] = []
        self.presences: list[Presence] = []
        self.changed = threading.Condition()
        self.web = QuietServer(("127.0.0.1", 0), Handler)
        self.web.fleet = self  # type: ignore[attr-defined]
        self.url = f"http{'s' * secure}://127.0.0.1:{self.web.server_address[1]}"
        if secure:
            self.web.socket = self.authority.web.wrap_socket(
                self.web.socket, server_side=True, do_handshake_on_connect=False
            )
            self.catalogue.publish_document(ANCHORS_PATH, self.authority.anchors)
        self._thread = threading.Thread(target=self.web.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.broker_url = "mqtt://127.0.0.1:1"
        self._client: Client | None = None
        if with_broker:
            self._start_broker()

    # -- trust --------------------------------------------------------------------------------

    def now_ms(self) -> int:
        """The server's clock; ``ahead_ms`` puts it forward."""
        return int(time.time() * 1000) + self.ahead_ms

    def new_catalogue(self, name: str) -> Catalogue:
        """Return a repository with keys of its own that vouches for this fleet's keyset."""
        catalogue = open_catalogue(
            self.folder / name,
            may_make=True,
            random_bytes=os.urandom,
            now_ms=self.now_ms,
        )
        catalogue.publish_document(KEYSET_PATH, self.keyset())
        return catalogue

    def keyset(self, **changes: Any) -> bytes:
        raw = public(self.director)
        listed = [PublicKey(envelope.key_id(raw), raw.hex())]
        fields = {
            "fleet": FLEET,
            "generation": self.generation,
            "epoch_floor": 0,
            "directors": listed,
        }
        return codec.encode_json(Keyset(**{**fields, **changes}))

    def trust_file(self, path: str) -> bytes | None:
        place, _, name = path.partition("/")
        look_up = {
            "metadata": self.catalogue.read,
            "roots": self.catalogue.root_by_digest,
            "targets": self.catalogue.read_target,
        }[place]
        return look_up(name)

    @staticmethod
    def seal(kind: str, document: object, key: Ed25519PrivateKey) -> bytes:
        return envelope.seal(
            kind, codec.encode_json(document), {envelope.key_id(public(key)): key.sign}
        )

    def token(self, **changes: str) -> str:
        fields = {
            "server": self.url,
            "fleet": FLEET,
            "secret": SECRET,
            "root": self.catalogue.root_digest,
        }
        return write_token(EnrolmentToken(**{**fields, **changes}))

    def enrolment_answer(self, body: bytes) -> tuple[int, bytes]:
        request = codec.decode_json(body, EnrolmentRequest, limit_bytes=1 << 20)
        answer = EnrolmentAnswer(
            device=request.device,
            fleet=FLEET,
            broker=self.broker_url,
            artifacts=f"{self.url}/v1/store",
            certificate=self.authority.certify(request.csr),
        )
        return 201, codec.encode_json(answer)

    def renewal_answer(self, body: bytes) -> tuple[int, bytes]:
        request = codec.decode_json(body, RenewalRequest, limit_bytes=1 << 20)
        certificate = self.authority.certify(request.csr)
        answer = RenewalAnswer(self.broker_url, f"{self.url}/v1/store", certificate)
        return 200, codec.encode_json(answer)

    # -- releases -----------------------------------------------------------------------------

    def put_file(self, data: bytes) -> FileRef:
        digest = hashlib.sha256(data).hexdigest()
        self.files[artifact_path(MODEL, digest)] = data
        return FileRef(digest, len(data))

    def release(self, version: str, *, opset: int = 13, **changes: Any) -> ReleaseRef:
        """Publish a release of the tiny model; another opset makes another artifact."""
        artifact = self.put_file(changes.pop("model", tiny_model(opset=opset, ir_version=8)))
        golden = codec.encode_msgpack(
            GoldenFile(
                [TensorData("x", "float32", [2], INPUTS["x"].tobytes())],
                [TensorData("y", "float32", [2], np.array(OUTPUT, np.float32).tobytes())],
            )
        )
        fields: dict[str, Any] = {
            "model": MODEL,
            "version": version,
            "release_counter": int(version.split(".", maxsplit=1)[0]),
            "created_ms": 0,
            "least_agent": 0,
            "variants": [
                Variant("cpu", Runtime.ONNXRUNTIME, "float32", artifact, Requirements(opset=opset))
            ],
            "inputs": [TensorSpec("x", "float32", [2])],
            "outputs": [TensorSpec("y", "float32", [2])],
            "features": FeatureSchema(FeatureSet(), FeatureSet()),
            "golden": GoldenVectors(self.put_file(golden), 0.0, 1e-6),
            "baseline": FileRef("0" * 64, 0),
            "lineage": Lineage("0" * 64, None, {}, None),
        }
        manifest = Manifest(**{**fields, **changes})
        data = codec.encode_json(manifest)
        digest = hashlib.sha256(data).hexdigest()
        path = manifest_path(MODEL, digest)
        self.files[path] = data
        self.catalogue.publish(MODEL, FileRef(digest, len(data)), [artifact, manifest.golden.file])
        return ReleaseRef(path, digest)

    def artifact_of(self, opset: int) -> str:
        """Return the path of a tiny model's artifact."""
        model = tiny_model(opset=opset, ir_version=8)
        return artifact_path(MODEL, hashlib.sha256(model).hexdigest())

    # -- the broker ---------------------------------------------------------------------------

    def _start_broker(self) -> None:
        self.broker = ToyBroker(self.authority.broker if self.secure else None)
        self.broker_url = self.broker.url
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.connect_timeout = WAIT_S
        if self.secure:
            self._client.tls_set_context(self.authority.client("server"))
        ready = threading.Event()
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.on_message = self._received
        self._client.connect("127.0.0.1", self.broker.port)
        self._client.loop_start()
        channels = (DeviceChannel.PRESENCE, DeviceChannel.PROGRESS, DeviceChannel.REPORT)
        self._client.subscribe([(topics.device_filter(FLEET, name), 1) for name in channels])
        assert ready.wait(WAIT_S)

    def _received(self, _client: Client, _data: Any, message: MQTTMessage) -> None:
        channel = topics.read_device(message.topic)
        payload = bytes(message.payload)
        windows: list[WindowAck] = []
        sequence, session = -1, ""
        with self.changed:
            if channel.channel is DeviceChannel.PRESENCE:
                self.presences.append(read_presence(payload))
            elif channel.channel is DeviceChannel.PROGRESS:
                progress = read_progress(payload)
                self.progress.append(progress)
                sequence, session = progress.sequence, progress.session
            else:
                report = read_report(payload)
                self.reports.append(report)
                session = report.session
                windows = [
                    WindowAck(channel.model, item.release, item.role, item.start_ms, item.sequence)
                    for item in report.windows
                ]
            self.changed.notify_all()
        if session and self.acknowledging and self._client is not None:
            ack = codec.encode_msgpack(Ack(session, sequence, windows))
            self._client.publish(topics.device(FLEET, DEVICE, DeviceChannel.ACK), ack, qos=1)

    def publish(self, topic: str, payload: bytes) -> None:
        assert self._client is not None
        said = self._client.publish(topic, payload, qos=1, retain=True)
        said.wait_for_publish(WAIT_S)
        assert said.is_published()

    def drop_devices(self) -> None:
        """Cut the device's connection, as a broken network does."""
        with contextlib.ExitStack() as open_lines:
            thief = open_lines.enter_context(
                socket.create_connection(("127.0.0.1", self.broker.port))
            )
            if self.secure:
                tls = self.authority.client(DEVICE)
                tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
                thief = open_lines.enter_context(tls.wrap_socket(thief))
            thief.sendall(
                b"\x10"
                + bytes([13 + len(DEVICE)])
                + b"\x00\x04MQTT\x05\x02\x00\x3c\x00"
                + len(DEVICE).to_bytes(2, "big")
                + DEVICE.encode()
            )
            thief.recv(1)  # whoever has the same name is put out before the answer

    def next_epoch(self) -> int:
        self.epoch += 1
        return self.epoch

    def admit(self) -> None:
        """Publish a lifted stop and the device's assignment."""
        stop = Stop(FLEET, self.generation, self.next_epoch(), self.epoch, False, "")
        self.publish(topics.stop(FLEET), self.seal(STOP_TYPE, stop, self.director))
        epoch = self.next_epoch()
        assignment = Assignment(
            FLEET, DEVICE, self.generation, epoch, epoch, COHORT, {}, {}, {}, {}
        )
        topic = topics.device(FLEET, DEVICE, DeviceChannel.ASSIGNMENT)
        self.publish(topic, self.seal(ASSIGNMENT_TYPE, assignment, self.director))

    def direct(self, default: ReleaseRef | str | None, **changes: Any) -> None:
        """Publish a directive that asks every device for this release."""
        fields: dict[str, Any] = {
            "fleet": FLEET,
            "cohort": COHORT,
            "model": MODEL,
            "generation": self.generation,
            "epoch": self.next_epoch(),
            "issued_ms": self.epoch,
            "expires_ms": self.epoch + 86_400_000,
            "rollout": "r1",
            "salt": "00" * 16,
            "default": default,
            "arms": [],
            "activation": Activation.ACTIVE,
            "starts": Starts.OPEN,
            "spread_ms": 0,
            "soak_ms": 200,
            "report_every_ms": 300,
            "retry": 0,
            "standby": default if isinstance(default, ReleaseRef) else None,
        }
        directive = Directive(**{**fields, **changes})
        topic = topics.directive(FLEET, COHORT, MODEL)
        self.publish(topic, self.seal(DIRECTIVE_TYPE, directive, self.director))

    # -- waiting ------------------------------------------------------------------------------

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Wait until what a device said or did makes this true; fail the test if it never is."""
        end = time.monotonic() + timeout_s
        with self.changed:
            while not condition():
                assert time.monotonic() < end, "the device did not say or do so in time"
                self.changed.wait(0.05)  # what it does is not always said

    def wait_for_presence(self, *, online: bool) -> Presence:
        """Wait until the last that was heard of the device is that it is there, or is not."""
        self.wait_until(lambda: self.presences != [] and self.presences[-1].online is online)
        return self.presences[-1]

    @staticmethod
    def wait_for_file(path: Path, condition: Callable[[bytes], bool]) -> None:
        """Wait until what a file holds makes this true; fail the test if it never does."""
        end = time.monotonic() + WAIT_S
        while not condition(path.read_bytes()):
            assert time.monotonic() < end, f"{path.name} was not changed in time"
            time.sleep(0.02)

    def wait_for_posts(self, count: int) -> None:
        """Wait until devices have sent so many requests by POST."""
        self.wait_until(lambda: self.posts >= count)

    def close(self) -> None:
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
            self.broker.close()
        self.web.shutdown()
        self.web.server_close()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        shutil.rmtree(self.folder)


def folder_of(path: Path) -> set[str]:
    """Return the names of the files below a folder."""
    return {str(item.relative_to(path)) for item in path.rglob("*") if item.is_file()}

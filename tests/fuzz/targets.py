"""Every parser of bytes that come from a peer, a disk or a person, as a function to be fuzzed.

A target takes bytes and returns, or raises one of its documented errors; anything else that it
raises is a fault. What is signed is sealed with the right key here, so that the fuzzer's bytes
reach the checks behind the signature; the envelope itself has a target of its own. New parsers are
added to the list at the end.
"""

from __future__ import annotations

import functools
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from device_agent.core import events
from device_agent.core.state import Record, State, read_record, write_record
from device_agent.core.step import step
from device_agent.errors import StepFailed
from device_agent.inference.golden import read_golden
from device_agent.shell.certificate import CertificateRejected
from fleet_contract import bucket, codec, enrolment, limits, names, topics
from fleet_contract.errors import ContractError, Refused
from fleet_contract.features import FeatureSchema
from fleet_contract.manifest import (
    Capabilities,
    GoldenFile,
    Manifest,
    TensorData,
    artifact_path,
    choose_variant,
    read_manifest,
)
from fleet_contract.messages.presence import read_presence
from fleet_contract.messages.progress import read_progress
from fleet_contract.messages.report import check_sketches, read_ack, read_report
from fleet_contract.sketches import features as sketches
from fleet_contract.sketches import latency
from fleet_contract.trust import checks, envelope
from fleet_contract.trust.checks import Acceptance, Audience
from fleet_contract.trust.directive import ASSIGNMENT_TYPE, DIRECTIVE_TYPE, STOP_TYPE, ReleaseRef
from fleet_contract.trust.keyset import Keyset, read_keyset
from fleet_server.errors import Invalid
from fleet_server.releases import archives
from fleet_server.releases.states import Refusal
from tests.fuzz import bench, broker, certificates, metadata, patches, signatures, tflite

VECTORS = Path(__file__).parents[1] / "fleet_contract" / "vectors"
CAPABILITIES = Capabilities({"onnxruntime": "1.31.1"}, "aarch64", 26, 13, 4_000_000_000)
NOW_MS = 1_795_000_000_200
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@dataclass(frozen=True)
class Target:
    """``cost`` is how many inputs of the cheapest target one of this takes the time of."""

    name: str
    run: Callable[[bytes], object]
    seeds: list[bytes]
    errors: tuple[type[Exception], ...] = (ContractError,)
    cost: int = 1


@functools.cache
def vector(name: str) -> dict[str, Any]:
    """Return a golden vector of the wire."""
    found: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def payload(name: str) -> bytes:
    """Return the document inside a golden vector, or its MessagePack."""
    found = vector(name)
    return found["payload"].encode() if "payload" in found else bytes.fromhex(found["msgpack_hex"])


SEED = bytes.fromhex(vector("keys")["director"]["seed_hex"])[:32]
DIRECTOR = Ed25519PrivateKey.from_private_bytes(SEED)
KEYSET = codec.decode_json(payload("keyset"), Keyset, limit_bytes=limits.ENVELOPE_BYTES)
KEYID = KEYSET.directors[0].keyid
KINDS = {"directive": DIRECTIVE_TYPE, "assignment": ASSIGNMENT_TYPE, "stop": STOP_TYPE}
SCHEMA: FeatureSchema = codec.decode_json(
    payload("manifest"), Manifest, limit_bytes=limits.MANIFEST_BYTES
).features
TOPICS = {
    "directive": topics.directive("home", "lab", "digits"),
    "assignment": topics.device("home", "device-1", topics.DeviceChannel.ASSIGNMENT),
    "stop": topics.stop("home"),
}


def sealed(kind: str, data: bytes) -> bytes:
    return envelope.seal(KINDS[kind], data, {KEYID: DIRECTOR.sign})


def check_directive(data: bytes) -> object:
    return checks.check_directive(
        data,
        keyset=KEYSET,
        audience=Audience("home", "lab", "digits"),
        held=Acceptance(1, 1_794_000_000_000, "00" * 32),
        minimum_epoch=0,
        now_ms=NOW_MS,
    ).document.arm_for("device-1")


def check_assignment(data: bytes) -> object:
    return checks.check_assignment(data, keyset=KEYSET, fleet="home", device="device-1", held=None)


def check_stop(data: bytes) -> object:
    return checks.check_stop(data, keyset=KEYSET, fleet="home", held=None)


@functools.cache
def running_agent() -> State:
    """An agent's core that holds stop and assignment, and runs a release."""
    state = State(Record("home", "device-1", KEYSET))
    orders = [events.Received(TOPICS[k], _vector_envelope(k)) for k in ("assignment", "directive")]
    happened: list[events.Event] = [
        events.Booted("0123456789abcdef", "0.1.0", CAPABILITIES),
        events.Connected(),
        *orders,
        events.Fetched("digits", "b2" * 32, "m", "1.0.0", 1),
        events.Probed("digits", "b2" * 32),
        events.Activated("digits", "b2" * 32),
    ]
    for event in happened:
        state, _ = step(state, event, NOW_MS)
    return state


def _vector_envelope(kind: str) -> bytes:
    return bytes.fromhex(vector(kind)["envelope_hex"])


def agent(kind: str) -> Callable[[bytes], object]:
    """Whatever the director really signed, the whole agent takes it, stores it and reports it."""

    def run(data: bytes) -> object:
        message = sealed(kind, data)
        state, effects = step(running_agent(), events.Received(TOPICS[kind], message), NOW_MS)
        assert read_record(write_record(state.record)) == state.record
        return step(state, events.Tick(), NOW_MS + 60_000), effects

    return run


def agent_message(data: bytes) -> object:
    """Any bytes on any topic that a device hears; the first byte says which."""
    heard = [*TOPICS.values(), topics.device("home", "device-1", topics.DeviceChannel.ACK), "x/y"]
    topic = heard[data[0] % len(heard)] if data else heard[0]
    return step(running_agent(), events.Received(topic, data[1:]), NOW_MS)


def agent_keyset(data: bytes) -> object:
    return step(running_agent(), events.KeysetFetched(data), NOW_MS)


def token(data: bytes) -> object:
    return enrolment.read_token(data.decode("latin-1"))


def enrolment_messages(data: bytes) -> object:
    """Every struct of the module, so that a new message is fuzzed from its first day on."""
    for kind in vars(enrolment).values():
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            try:
                codec.decode_json(data, kind, limit_bytes=limits.STATUS_BYTES)
            except Refused:
                continue
    return None


def report(data: bytes) -> object:
    for window in read_report(data).windows:
        check_sketches(window, SCHEMA)
        latency.quantile_us(window.latency, 0.95)
    return None


def feature_sketches(data: bytes) -> object:
    found = codec.decode_msgpack(data, sketches.FeatureSketches, limit_bytes=limits.REPORT_BYTES)
    sketches.check(found, SCHEMA.inputs)
    return found


def manifest(data: bytes) -> object:
    found = read_manifest(data, model="digits")
    found.features.digest()
    return choose_variant(found, CAPABILITIES, {"hardware": "rpi5"})


def record(data: bytes) -> object:
    found = read_record(data)
    state = State(found)
    state, _ = step(state, events.Booted("0123456789abcdef", "0.1.0", CAPABILITIES), NOW_MS)
    return write_record(state.record)


def words(data: bytes) -> object:
    """Names, topics and buckets, as a peer writes them."""
    text = data.decode("latin-1")
    for read in (
        topics.read_directive,
        topics.read_device,
        names.check_model,
        names.check_version,
        bucket.read_bucket,
        lambda name: names.check_identity(name, "device"),
    ):
        try:
            read(text)
        except ContractError:
            continue
    return None


def arrays(data: bytes) -> object:
    """What a pusher uploads as npz, by its directory and headers, and then its numbers."""
    with tempfile.NamedTemporaryFile(suffix=".npz", dir=MEMORY) as file:
        file.write(data)
        file.flush()
        found = archives.inspect(Path(file.name), "golden")
        return archives.load(Path(file.name), "golden", list(found))


def _arrays() -> bytes:
    made = io.BytesIO()
    np.savez_compressed(made, x=np.arange(12, dtype=np.float32).reshape(3, 4), y=np.zeros(3))
    return made.getvalue()


def _json(document: object) -> bytes:
    return codec.encode_json(document)


def _golden() -> bytes:
    floats, numbers = ("x", "float32", [2, 2], bytes(16)), ("n", "int64", [1], bytes(8))
    tensors = [TensorData(*floats), TensorData(*numbers)]
    return codec.encode_msgpack(GoldenFile(tensors, tensors))


def _record() -> bytes:
    return write_record(running_agent().record)


TOKEN = enrolment.EnrolmentToken(**vector("token")["token"])
RELEASE = ReleaseRef(artifact_path("digits", "ab" * 32), "ab" * 32)

TARGETS = [
    Target("envelope", check_directive, [_vector_envelope("directive")]),
    *(
        Target(f"signed {kind}", functools.partial(_checked, kind), [payload(kind)])
        for kind, _checked in (
            ("directive", lambda kind, data: check_directive(sealed(kind, data))),
            ("assignment", lambda kind, data: check_assignment(sealed(kind, data))),
            ("stop", lambda kind, data: check_stop(sealed(kind, data))),
        )
    ),
    *(
        Target(f"agent, signed {kind}", agent(kind), [payload(kind)], errors=(), cost=8)
        for kind in KINDS
    ),
    Target(
        "agent, any message",
        agent_message,
        [
            *(bytes([index]) + _vector_envelope(kind) for index, kind in enumerate(TOPICS)),
            b"\x03" + payload("ack"),
        ],
        errors=(),
        cost=4,
    ),
    Target("agent, keyset", agent_keyset, [payload("keyset")], errors=(), cost=2),
    Target(
        "keyset",
        lambda data: read_keyset(data, fleet="home", held=replace(KEYSET, epoch_floor=1)),
        [payload("keyset")],
    ),
    Target("manifest", manifest, [payload("manifest")]),
    Target("golden vectors", read_golden, [_golden()], errors=(StepFailed,)),
    Target("enrolment token", token, [vector("token")["word"].encode()]),
    Target(
        "enrolment messages", enrolment_messages, [_json(TOKEN), b'{"device":"device-1"}'], cost=2
    ),
    Target("presence", read_presence, [payload("presence"), payload("will")]),
    Target("progress", read_progress, [payload("progress")]),
    Target("report", report, [payload("report")]),
    Target("ack", read_ack, [payload("ack")]),
    Target(
        "sketches",
        feature_sketches,
        [codec.encode_msgpack(read_report(payload("report")).windows[0].inputs)],
    ),
    Target("signed bench job", bench.check_signed, [bench.JOB]),
    Target("bench rows", bench.rows, [bench.ROWS], errors=(StepFailed,)),
    Target("bench messages", bench.said, [bench.POLL, bench.RESULT]),
    Target("record", record, [_record()], cost=4),
    Target(
        "names and topics", words, [*(topic.encode() for topic in TOPICS.values()), b"1.0.0-rc.1"]
    ),
    Target("model signature", signatures.read_bundle, signatures.bundles(), (Invalid,), cost=4),
    Target("signed model list", signatures.read_signed, signatures.payloads(), (Invalid,), cost=2),
    Target("provenance", signatures.read_statement, signatures.statements()),
    Target("request", certificates.read_request, certificates.requests(), (Invalid,), cost=4),
    Target(
        "certificate", certificates.read_answer, certificates.answers(), (CertificateRejected,), 4
    ),
    Target("uploaded arrays", arrays, [_arrays()], errors=(Refusal,), cost=8),
    Target("tflite", tflite.examine, tflite.seeds(), errors=(Refusal,), cost=2),
    Target("patch", patches.decode, [patches.PATCH]),
    Target("patch, content", patches.decode_content, [patches.CONTENT], cost=2),
    Target("tensors of models", patches.align_models, [patches.model()], errors=(), cost=4),
    Target("metadata", metadata.run, metadata.seeds(), errors=(StepFailed,), cost=20),
    Target("broker codec", broker.run_codec, broker.seeds(), errors=(broker.PacketError,)),
    Target("broker", broker.run_core, broker.seeds(), errors=(), cost=4),
]

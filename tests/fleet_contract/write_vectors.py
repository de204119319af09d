"""Writes the golden vectors: what the wire looks like, byte for byte, for agents in any language.

    python tests/fleet_contract/write_vectors.py

Run it knowingly: a changed vector means that devices in the field no longer understand the server,
unless the wire version grows. The test beside it fails until vectors and code agree. Values are
chosen to differ from each other and to reach every field.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet_contract import bucket, codec, enrolment, topics
from fleet_contract.deltas.form import HEADER_BYTES, Header, Kind, Operation
from fleet_contract.deltas.writer import PatchWriter
from fleet_contract.deltas.zstandard import zstd
from fleet_contract.errors import Reason
from fleet_contract.features import (
    EDGE_QUANTILES,
    INNER_EDGES,
    CategoricalFeature,
    FeatureSchema,
    FeatureSet,
    NumericFeature,
    Reduction,
    Source,
)
from fleet_contract.manifest import (
    Capabilities,
    FileRef,
    GoldenVectors,
    Lineage,
    Manifest,
    Requirements,
    Runtime,
    TensorSpec,
    Variant,
)
from fleet_contract.messages.bench import BenchPoll, BenchResult, Timed
from fleet_contract.messages.presence import Presence, Seen
from fleet_contract.messages.progress import ModelProgress, Phase, Progress, Refusal
from fleet_contract.messages.report import Ack, Pairs, Report, Role, Window, WindowAck
from fleet_contract.sketches import latency
from fleet_contract.sketches.features import FeatureBank
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust import envelope
from fleet_contract.trust.bench import BENCH_JOB_TYPE, BenchJob, Entrant
from fleet_contract.trust.directive import (
    ASSIGNMENT_TYPE,
    DIRECTIVE_TYPE,
    STOP_TYPE,
    Activation,
    Arm,
    Assignment,
    Directive,
    ReleaseRef,
    Starts,
    Stop,
)
from fleet_contract.trust.keyset import Keyset, PublicKey

FOLDER = Path(__file__).parent / "vectors"
SEEDS = {"director": 2}
KEYS = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for name, seed in SEEDS.items()
}
PUBLIC = {name: key.public_key().public_bytes_raw() for name, key in KEYS.items()}
BOOT = "0123456789abcdef"
STABLE, CANDIDATE = "a1" * 32, "b2" * 32
SALT = "000102030405060708090a0b0c0d0e0f"


def _reference(digest: str) -> ReleaseRef:
    return ReleaseRef(f"manifests/digits/{digest}.json", digest)


def _public(name: str) -> PublicKey:
    return PublicKey(envelope.key_id(PUBLIC[name]), PUBLIC[name].hex())


EDGES = [(step - 15) / 8 for step in range(INNER_EDGES)]
SCHEMA = FeatureSchema(
    FeatureSet(numeric=[NumericFeature("brightness", Source("image", Reduction.MEAN), 10, EDGES)]),
    FeatureSet(
        numeric=[NumericFeature("margin", Source("scores", Reduction.MARGIN), 16, EDGES)],
        categorical=[
            CategoricalFeature("winner", Source("scores", Reduction.TOP_CLASS), ["0", "1", "2"])
        ],
    ),
)
DIRECTIVE = Directive(
    fleet="home",
    cohort="lab",
    model="digits",
    generation=1,
    epoch=1_795_000_000_123,
    issued_ms=1_795_000_000_100,
    expires_ms=1_795_000_600_100,
    rollout="r-0007",
    salt=SALT,
    default=_reference(STABLE),
    arms=[
        Arm("candidate", "0" * 16, "30072ba2afcb11c8", _reference(CANDIDATE), 2_000),
        Arm("holdback", "d000000000000000", "f" * 16, "disabled", 30_000),
    ],
    activation=Activation.ACTIVE,
    starts=Starts.OPEN,
    spread_ms=5_000,
    soak_ms=60_000,
    report_every_ms=10_000,
    retry=1,
    standby=_reference(STABLE),
)
ASSIGNMENT = Assignment(
    fleet="home",
    device="device-1",
    generation=1,
    epoch=1_795_000_000_124,
    issued_ms=1_795_000_000_101,
    cohort="lab",
    labels={"hardware": "rpi5", "site": "lab"},
    pins={"faces": _reference(STABLE)},
    blocks={"digits": [CANDIDATE]},
    minimum_epochs={"digits": 1_795_000_000_000},
)
STOP = Stop("home", 1, 1_795_000_000_125, 1_795_000_000_102, True, "smoke in hall 3")
KEYSET = Keyset("home", 1, 1_790_000_000_000, [_public("director")], {"doors": 3})
MANIFEST = Manifest(
    model="digits",
    version="1.1.0",
    release_counter=2,
    created_ms=1_795_000_000_000,
    least_agent=1,
    variants=[
        Variant(
            "int8",
            Runtime.ONNXRUNTIME,
            "int8",
            FileRef("c3" * 32, 12_345),
            Requirements(
                21, 10, ["Conv", "Gemm"], 4_000_000, {"hardware": "rpi5"}, ["aarch64"], "2.0"
            ),
        )
    ],
    inputs=[TensorSpec("image", "float32", [None, 64])],
    outputs=[TensorSpec("scores", "float32", [None, 3])],
    features=SCHEMA,
    golden=GoldenVectors(FileRef("d4" * 32, 2_345), 0.98, 0.25),
    baseline=FileRef("e5" * 32, 3_456),
    lineage=Lineage("f6" * 32, None, {"onnxruntime": "1.31.1"}, "1.0.0"),
    states={"memory": "memory_after"},
)
CAPABILITIES = Capabilities({"onnxruntime": "1.31.1"}, "aarch64", 26, 13, 4_000_000_000, "2.4.1")
BENCH_JOB = BenchJob(
    fleet="home",
    device="device-1",
    number=1_795_000_000_126,
    generation=1,
    issued_ms=1_795_000_000_103,
    expires_ms=1_795_000_300_103,
    rival=Entrant(Runtime.ONNXRUNTIME, FileRef("a7" * 32, 45_678)),
    candidates=[
        Entrant(Runtime.ONNXRUNTIME, FileRef("b8" * 32, 12_345)),
        Entrant(Runtime.LITERT, FileRef("c9" * 32, 13_579)),
    ],
    rows=FileRef("da" * 32, 8_192),
    inputs=MANIFEST.inputs,
    outputs=MANIFEST.outputs,
    most_ms=2_000,
)
BENCH_POLL = BenchPoll(CAPABILITIES, 1_795_000_000_126, "expired: expired 7 ms ago")
BENCH_RESULT = BenchResult(
    [
        Timed("b8" * 32, None, "", 512.5, 1024.25, 520.5, 1040.75, 399),
        Timed("c9" * 32, Reason.BROKEN_MODEL, "not loaded: no such operator"),
    ]
)
SEEN = Seen(2, 1_767_225_600_001, 3, 41, 27, 35, ["digits", "vision-doors"], {"digits": 2})
PRESENCE = Presence(True, 5, BOOT, 1, "0.1.0", CAPABILITIES, {"digits": STABLE}, SEEN)
WILL = Presence(False, 5, BOOT, 1, "0.1.0", None, {})
PROGRESS = Progress(
    BOOT,
    4,
    17,
    [
        ModelProgress(
            *("digits", "r-0007", Phase.FAILED, CANDIDATE, STABLE, ""),
            *(1, 1_795_000_000_123, 1_795_000_000_500, Reason.WRONG_HASH, "got 00, not c3"),
        )
    ],
    [Refusal("fleet/v1/home/stop", Reason.OLD_EPOCH, "epoch 3", 1_795_000_000_400)],
)
INPUTS = [[0.0, 0.25], [1.0, 3.0], [-0.0, -1.9], [math.inf, 1.0], [math.nan, 0.0]]
# Exact in binary, without a softmax: the last bit of an exponential differs between processors.
SCORES = [[0.0, 0.0, 1.0], [0.75, 0.25, 0.0], [0.25, 0.5, 0.25], [0.0, 1.0, 0.0], [math.nan] * 3]
LATENCIES_US = [0, 1, 2, 50, 51, 812, 812, 1_190, 2_301, 1 << 31, (1 << 31) + 1]


def _window() -> Window:
    inputs, outputs = FeatureBank(SCHEMA.inputs), FeatureBank(SCHEMA.outputs)
    inputs.update({"image": np.array(INPUTS)})
    outputs.update({"scores": np.array(SCORES)})
    return Window(
        *(CANDIDATE, Role.SHADOW, 1_795_000_000_000, 10_000, 3, True, 11, 1),
        *(latency.of(LATENCIES_US), SCHEMA.digest()),
        inputs=inputs.sketches(),
        outputs=outputs.sketches(),
        pairs=Pairs(10, 9, 4),
    )


BARE = Window(
    *(STABLE, Role.ACTIVE, 1_795_000_010_000, 0, 1, False, 0, 0),
    *(latency.EMPTY, SCHEMA.digest(), None, None, None),
)
TOKEN = enrolment.EnrolmentToken("http://127.0.0.1:8420", "home", "5e" * 32, "7a" * 32)


def _signed(name: str, signer: str, payload_type: str, document: msgspec.Struct) -> dict[str, Any]:
    payload = codec.encode_json(document)
    key = KEYS[signer]
    sealed = envelope.seal(payload_type, payload, {envelope.key_id(PUBLIC[signer]): key.sign})
    encoded = envelope.pre_authentication_encoding(payload_type, payload)
    return {
        "what": name,
        "signed_by": signer,
        "payload_type": payload_type,
        "payload": payload.decode(),
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
        "signed_bytes_hex": encoded.hex(),
        "signature_hex": key.sign(encoded).hex(),
        "envelope_hex": sealed.hex(),
    }


def _message(name: str, topic: str, message: msgspec.Struct) -> dict[str, Any]:
    return {
        "what": name,
        "topic": topic,
        "message": msgspec.to_builtins(message),
        "msgpack_hex": codec.encode_msgpack(message).hex(),
    }


def _spoken(name: str, path: str, message: msgspec.Struct) -> dict[str, Any]:
    """The body of a request of a device."""
    return {
        "what": name,
        "path": path,
        "message": msgspec.to_builtins(message),
        "body": codec.encode_json(message).decode(),
    }


def _device(channel: DeviceChannel) -> str:
    return topics.device("home", "device-1", channel)


def _target(path: str, document: object) -> dict[str, Any]:
    """A document that the TUF metadata vouches for, and what it says about it."""
    data = codec.encode_json(document)
    digest = hashlib.sha256(data).hexdigest()
    return {
        "path": path.format(digest=digest),
        "sha256": digest,
        "size_bytes": len(data),
        "payload": data.decode(),
    }


def _buckets() -> dict[str, Any]:
    devices = [f"device-{number}" for number in range(1, 13)]
    numbers = {device: bucket.bucket_of(SALT, device) for device in devices}
    ends = {str(k): bucket.arm_end(numbers.values(), k) for k in (1, 3, 12)}
    return {
        "salt": SALT,
        "buckets": {device: bucket.write_bucket(number) for device, number in numbers.items()},
        "arm_ends": {k: bucket.write_bucket(end or 0) for k, end in ends.items()},
        "arms_of_the_directive": {
            device: arm.name if (arm := DIRECTIVE.arm_for(device)) else "default"
            for device in devices
        },
    }


def _numbers(rows: list[list[float]]) -> list[list[float | str]]:
    """JSON knows neither NaN nor infinities: they are written as texts."""
    return [[x if math.isfinite(x) else str(x) for x in row] for row in rows]


def _sketches() -> dict[str, Any]:
    window = _window()
    sketch = latency.of(LATENCIES_US)
    shares = [0.0, 0.5, 0.95, 1.0]
    return {
        "edge_quantiles": list(EDGE_QUANTILES),
        "schema": codec.encode_json(SCHEMA).decode(),
        "schema_digest": SCHEMA.digest(),
        "inputs": {"image": _numbers(INPUTS)},
        "outputs": {"scores": _numbers(SCORES)},
        "input_sketches": msgspec.to_builtins(window.inputs),
        "output_sketches": msgspec.to_builtins(window.outputs),
        "latency": {
            "bounds": len(latency.BOUNDS_US),
            "bounds_us": list(latency.BOUNDS_US),
            "latencies_us": LATENCIES_US,
            "sketch": msgspec.to_builtins(sketch),
            "quantiles_us": {str(share): latency.quantile_us(sketch, share) for share in shares},
        },
    }


def _patch() -> dict[str, Any]:
    """One operation of each kind, in a frame of one stored block, so that no compressor counts."""
    sparse = np.zeros(900, np.uint8)
    sparse[[n * n for n in range(3, 22)] + [880]] = [(1, 255, 2)[n % 3] for n in range(20)]
    old = np.arange(1000, 1016, dtype="<u4").tobytes() + b"structure" + bytes(range(180)) * 5
    steps = np.array([3, -2, 0, 1, -1, 70000, -70000, 5], dtype="<i4")
    turned = np.frombuffer(old[32:48], "<u2") ^ np.uint16(0x8001)
    new = (
        (np.frombuffer(old[:32], "<u4") + steps.astype("<u4")).tobytes()
        + turned.tobytes()
        + b"new"
        + old[64:73]
        + (np.frombuffer(old[73:], np.uint8) + sparse).tobytes()
    )
    operations = [
        Operation(Kind.SUBTRACT, 4, 32, 0),
        Operation(Kind.XOR, 2, 16, 32),
        Operation(Kind.LITERAL, 1, 3),
        Operation(Kind.COPY, 1, 9, 64),
        Operation(Kind.SUBTRACT, 1, 900, 73),
    ]
    header = Header(_sha256(old), _sha256(new), len(old), len(new))
    written = bytearray()
    writer = PatchWriter(header, old, new, written.extend, level=1)
    for operation in operations:
        writer.add(operation)
    writer.finish()
    content = zstd.decompress(bytes(written[HEADER_BYTES:]))
    # Magic, no options, a window of 2^18 bytes, and one block: the last, stored as it is.
    block = (1 | len(content) << 3).to_bytes(3, "little")
    frame = bytes.fromhex("28b52ffd") + b"\x00\x40" + block + content
    return {
        "old_hex": old.hex(),
        "new_hex": new.hex(),
        "operations": [
            {
                "kind": operation.kind.name.lower(),
                "width_bytes": operation.width_bytes,
                "size_bytes": operation.size_bytes,
                "base": operation.base,
            }
            for operation in operations
        ],
        "content_hex": content.hex(),
        "patch_hex": (header.write() + frame).hex(),
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build() -> dict[str, Any]:
    """Return file name → content, made by today's code."""
    report = topics.report("home", "device-1", "digits")
    key = (CANDIDATE, Role.SHADOW, 1_795_000_000_000, 3)
    return {
        "keys": {
            name: {
                "seed_hex": bytes([SEEDS[name]]).hex() * 32,
                "public_hex": public.hex(),
                "keyid": envelope.key_id(public),
            }
            for name, public in PUBLIC.items()
        },
        "directive": _signed("directive", "director", DIRECTIVE_TYPE, DIRECTIVE),
        "assignment": _signed("assignment", "director", ASSIGNMENT_TYPE, ASSIGNMENT),
        "stop": _signed("stop", "director", STOP_TYPE, STOP),
        "bench_job": _signed("bench job", "director", BENCH_JOB_TYPE, BENCH_JOB),
        "bench_poll": _spoken("bench poll", "/v1/bench/poll", BENCH_POLL),
        "bench_result": _spoken(
            "bench result", f"/v1/bench/jobs/{BENCH_JOB.number}/result", BENCH_RESULT
        ),
        "keyset": _target("keyset.json", KEYSET),
        "manifest": _target("manifests/digits/{digest}.json", MANIFEST),
        "presence": _message("presence", _device(DeviceChannel.PRESENCE), PRESENCE),
        "will": _message("will", _device(DeviceChannel.PRESENCE), WILL),
        "progress": _message("progress", _device(DeviceChannel.PROGRESS), PROGRESS),
        "report": _message("report", report, Report(BOOT, [_window(), BARE], 2, 1)),
        "ack": _message(
            "ack", _device(DeviceChannel.ACK), Ack(BOOT, 17, [WindowAck("digits", *key)])
        ),
        "token": {
            "token": msgspec.to_builtins(TOKEN),
            "word": enrolment.write_token(TOKEN),
        },
        "bucket": _buckets(),
        "sketches": _sketches(),
        "patch": _patch(),
    }


def as_text(content: dict[str, Any]) -> str:
    """Return a vector as it stands in its file."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


if __name__ == "__main__":
    for name, content in build().items():
        (FOLDER / f"{name}.json").write_text(as_text(content), encoding="utf-8")
        print(f"vectors/{name}.json")

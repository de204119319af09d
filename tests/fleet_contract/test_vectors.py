"""Guards the wire: devices in the field speak it as the golden vectors have it.

A failure here means that the wire has changed. If that was meant, the wire version grows, and
``write_vectors.py`` is run knowingly.
"""

from __future__ import annotations

import hashlib
import io
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet_contract import bucket, codec, enrolment, limits
from fleet_contract.deltas.decoder import Decoder
from fleet_contract.deltas.form import patch_path
from fleet_contract.manifest import manifest_path, read_manifest
from fleet_contract.messages.bench import read_poll, read_result
from fleet_contract.messages.presence import read_presence
from fleet_contract.messages.progress import read_progress
from fleet_contract.messages.report import check_sketches, read_ack, read_report
from fleet_contract.trust import checks, envelope
from fleet_contract.trust.bench import check_bench_job
from fleet_contract.trust.checks import Audience
from fleet_contract.trust.keyset import KEYSET_PATH, Keyset, read_keyset

HERE = Path(__file__).parent
FILES = sorted(path.stem for path in (HERE / "vectors").glob("*.json"))
WRITTEN: dict[str, Any] = runpy.run_path(str(HERE / "write_vectors.py"))


def load(name: str) -> Any:
    return json.loads((HERE / "vectors" / f"{name}.json").read_text(encoding="utf-8"))


def test_every_vector_has_its_file() -> None:
    assert set(FILES) == set(WRITTEN["build"]())


@pytest.mark.parametrize("name", FILES)
def test_code_writes_exactly_this(name: str) -> None:
    text = (HERE / "vectors" / f"{name}.json").read_text(encoding="utf-8")
    assert WRITTEN["as_text"](WRITTEN["build"]()[name]) == text


def public(name: str) -> bytes:
    return bytes.fromhex(load("keys")[name]["public_hex"])


def keyset() -> Keyset:
    return read_keyset(load("keyset")["payload"].encode(), fleet="home", held=None)


@pytest.mark.parametrize("name", ["directive", "assignment", "stop", "bench_job"])
def test_code_reads_exactly_this_signed_document(name: str) -> None:
    vector = load(name)
    data = bytes.fromhex(vector["envelope_hex"])
    document: object
    if name == "directive":
        document = checks.check_directive(
            data,
            keyset=keyset(),
            audience=Audience("home", "lab", "digits"),
            held=None,
            minimum_epoch=0,
            now_ms=1_795_000_600_099,
        ).document
    elif name == "assignment":
        document = checks.check_assignment(
            data, keyset=keyset(), fleet="home", device="device-1", held=None
        ).document
    elif name == "bench_job":
        document = check_bench_job(
            data,
            keyset=keyset(),
            fleet="home",
            device="device-1",
            done=1_795_000_000_125,
            now_ms=1_795_000_300_102,
        )
    else:
        document = checks.check_stop(data, keyset=keyset(), fleet="home", held=None).document
    assert document == WRITTEN[name.upper()]
    assert codec.encode_json(document).decode() == vector["payload"]


@pytest.mark.parametrize("name", ["directive", "assignment", "stop", "bench_job"])
def test_signature_is_over_the_bytes_that_the_vector_shows(name: str) -> None:
    vector = load(name)
    seed = bytes.fromhex(load("keys")[vector["signed_by"]]["seed_hex"])
    signed = bytes.fromhex(vector["signed_bytes_hex"])
    assert Ed25519PrivateKey.from_private_bytes(seed).sign(signed).hex() == vector["signature_hex"]
    kind, payload = vector["payload_type"], vector["payload"]
    head = f"DSSEv1 {len(kind)} {kind} {len(payload.encode())} "
    assert signed == head.encode() + payload.encode()
    sealed = json.loads(bytes.fromhex(vector["envelope_hex"]))
    assert sealed["signatures"][0]["keyid"] == envelope.key_id(public(vector["signed_by"]))


@pytest.mark.parametrize("name", ["keyset", "manifest"])
def test_code_reads_exactly_this_target(name: str) -> None:
    vector = load(name)
    data = vector["payload"].encode()
    document = keyset() if name == "keyset" else read_manifest(data, model="digits")
    assert document == WRITTEN[name.upper()]
    assert codec.encode_json(document) == data
    assert hashlib.sha256(data).hexdigest() == vector["sha256"]
    path = KEYSET_PATH if name == "keyset" else manifest_path("digits", vector["sha256"])
    assert vector["path"] == path


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("presence", read_presence),
        ("will", read_presence),
        ("progress", read_progress),
        ("report", read_report),
        ("ack", read_ack),
    ],
)
def test_code_reads_exactly_this_message(name: str, read: Any) -> None:
    data = bytes.fromhex(load(name)["msgpack_hex"])
    assert codec.encode_msgpack(read(data)) == data
    assert len(data) < limits.STATUS_BYTES


@pytest.mark.parametrize(
    ("name", "read"), [("bench_poll", read_poll), ("bench_result", read_result)]
)
def test_code_reads_exactly_this_body(name: str, read: Any) -> None:
    vector = load(name)
    assert read(vector["body"].encode()) == WRITTEN[name.upper()]
    assert json.loads(vector["body"]) == vector["message"]


def test_report_follows_the_schema_of_the_manifest() -> None:
    report = read_report(bytes.fromhex(load("report")["msgpack_hex"]))
    for window in report.windows:
        check_sketches(window, WRITTEN["MANIFEST"].features)


def test_token_is_read() -> None:
    assert enrolment.read_token(load("token")["word"]) == WRITTEN["TOKEN"]


def test_devices_find_the_arms_of_the_vectors() -> None:
    vector = load("bucket")
    directive = WRITTEN["DIRECTIVE"]
    arms = set()
    for device, text in vector["buckets"].items():
        number = bucket.read_bucket(text)
        assert bucket.bucket_of(vector["salt"], device) == number
        arm = directive.arm_for(device)
        arms.add(vector["arms_of_the_directive"][device])
        assert (arm.name if arm else "default") == vector["arms_of_the_directive"][device]
    assert arms == {"candidate", "holdback", "default"}
    assert list(vector["arms_of_the_directive"].values()).count("candidate") == 3
    assert vector["arm_ends"]["3"] == directive.arms[0].last


def test_patch_makes_the_new_file() -> None:
    vector = load("patch")
    old, new = (bytes.fromhex(vector[name]) for name in ("old_hex", "new_hex"))
    decoder = Decoder(io.BytesIO(bytes.fromhex(vector["patch_hex"])).read)
    digests = [hashlib.sha256(data).hexdigest() for data in (old, new)]
    assert [decoder.header.old_digest, decoder.header.new_digest] == digests
    assert b"".join(decoder.pieces(lambda at, size: old[at : at + size])) == new
    assert patch_path(*digests) == f"deltas/{digests[0]}/{digests[1]}"

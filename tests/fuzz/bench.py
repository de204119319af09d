"""What a bench reads of a server, and a server of a bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_agent.inference.golden import read_rows
from fleet_contract import codec, limits
from fleet_contract.manifest import TensorData
from fleet_contract.messages.bench import read_poll, read_result
from fleet_contract.trust import envelope
from fleet_contract.trust.bench import BENCH_JOB_TYPE, check_bench_job
from fleet_contract.trust.keyset import Keyset

VECTORS = Path(__file__).parents[1] / "fleet_contract" / "vectors"


def _vector(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


_SEED = bytes.fromhex(_vector("keys")["director"]["seed_hex"])[:32]
_DIRECTOR = Ed25519PrivateKey.from_private_bytes(_SEED)
_KEYSET = codec.decode_json(
    _vector("keyset")["payload"].encode(), Keyset, limit_bytes=limits.ENVELOPE_BYTES
)
JOB = _vector("bench_job")["payload"].encode()
POLL, RESULT = (_vector(name)["body"].encode() for name in ("bench_poll", "bench_result"))
ROWS = codec.encode_msgpack(
    [
        TensorData("x", "float32", [3, 2], np.arange(6, dtype="<f4").tobytes()),
        TensorData("n", "int64", [3], np.arange(3, dtype="<i8").tobytes()),
    ]
)


def check_signed(payload: bytes) -> object:
    """Whatever the director really signed: what it names is bounded, or it is refused."""
    signers = {_KEYSET.directors[0].keyid: _DIRECTOR.sign}
    job = check_bench_job(
        envelope.seal(BENCH_JOB_TYPE, payload, signers),
        keyset=_KEYSET,
        fleet="home",
        device="device-1",
        done=1,
        now_ms=1_795_000_000_200,
    )
    assert sum(file.size_bytes for file in job.files().values()) <= limits.BENCH_BYTES
    return job


def rows(data: bytes) -> object:
    """As many rows of each input, or a refusal."""
    found = read_rows(data)
    assert len({len(array) for array in found.values()}) == 1
    return found


def said(data: bytes) -> object:
    """A device's question, or its answer."""
    return read_result(data) if b"timed" in data else read_poll(data)

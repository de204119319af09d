"""What trust costs a device: the ordered checks, and what an agent's start and memory have of it.

A directive is checked against a bare Ed25519 verification of the very bytes that it signs, both in
the same round. Start and memory are those of a process of its own like an agent's
(tests/benchmarks/trust_process.py), with and without trust, turn by turn.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_agent.shell.metadata_files import MetadataFiles
from fleet_contract import codec
from fleet_contract.manifest import FileRef, manifest_path
from fleet_contract.trust import checks, envelope
from fleet_contract.trust.checks import Audience
from fleet_contract.trust.directive import (
    DIRECTIVE_TYPE,
    Activation,
    Arm,
    Directive,
    ReleaseRef,
    Starts,
)
from fleet_contract.trust.keyset import KEYSET_PATH, Keyset, PublicKey
from fleet_server.trust.catalogue.opening import open_catalogue
from tests.benchmarks.measurement import Measurement

ROUNDS = 15
CALLS = 300
PROCESSES = 9
NOW_MS = 1_795_000_000_000
KEY = Ed25519PrivateKey.from_private_bytes(b"\x05" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()
KEYSET = Keyset("home", 1, 0, [PublicKey(envelope.key_id(PUBLIC), PUBLIC.hex())])
CHILD = Path(__file__).parent / "trust_process.py"


def run() -> list[Measurement]:
    check_us, bare_us = _check()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder)
        costs = _processes(folder)
    none = costs["none"]
    found = [
        Measurement(
            "trust.directive_check",
            check_us,
            "CPU us",
            "bare Ed25519 verification",
            bare_us,
            largest_ratio=1.5,
        )
    ]
    # The first judges what the fleet asks for; the second is needed for a new release only.
    for what, name in (("check", "start"), ("metadata", "start_and_first_refresh")):
        found += [
            Measurement(
                f"trust.{name}",
                costs[what]["cpu_s"] * 1000,
                "CPU ms",
                "agent-like process without trust",
                none["cpu_s"] * 1000,
                largest_ratio=2.0,
            ),
            Measurement(
                f"trust.{name}.added", costs[what]["trust_s"] * 1000, "CPU ms", largest_value=150
            ),
            Measurement(
                f"trust.{name}.private_memory",
                costs[what]["private_bytes"] / 2**20,
                "MiB",
                "agent-like process without trust",
                none["private_bytes"] / 2**20,
                largest_ratio=2.0,
            ),
            Measurement(
                f"trust.{name}.private_memory_added",
                costs[what]["trust_bytes"] / 2**20,
                "MiB",
                largest_value=12,
            ),
            Measurement(
                f"trust.{name}.resident_memory",
                costs[what]["resident_bytes"] / 2**20,
                "MiB",
                "agent-like process without trust",
                none["resident_bytes"] / 2**20,
            ),
        ]
    return found


def _directive() -> bytes:
    def release(letter: str) -> ReleaseRef:
        return ReleaseRef(manifest_path("digits", letter * 64), letter * 64)

    arms = [
        Arm("canary", "0" * 16, "0" + "f" * 15, release("b"), 2_000),
        Arm("holdback", "f" + "0" * 15, "f" * 16, release("a"), 30_000),
    ]
    document = Directive(
        *("home", "lab", "digits", 1, NOW_MS, NOW_MS, NOW_MS + 86_400_000, "r-7", "ab" * 16),
        *(release("a"), arms, Activation.ACTIVE, Starts.OPEN, 5_000, 60_000, 10_000, 0),
        release("a"),
    )
    payload = codec.encode_json(document)
    return envelope.seal(DIRECTIVE_TYPE, payload, {KEYSET.directors[0].keyid: KEY.sign})


def _check() -> tuple[float, float]:
    """Return microseconds of processor time: the whole check, and the verification alone."""
    sealed = _directive()
    payload = envelope.unseal(
        sealed, DIRECTIVE_TYPE, KEYSET.director_keys(), limit_bytes=len(sealed)
    )
    signed = envelope.pre_authentication_encoding(DIRECTIVE_TYPE, payload)
    signature, public = KEY.sign(signed), KEY.public_key()
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        began_s = time.thread_time()
        for _ in range(CALLS):
            public.verify(signature, signed)
        between_s = time.thread_time()
        for _ in range(CALLS):
            checks.check_directive(
                sealed,
                keyset=KEYSET,
                audience=Audience("home", "lab", "digits"),
                held=None,
                minimum_epoch=0,
                now_ms=NOW_MS,
            )
        ended_s = time.thread_time()
        if number:  # the first one warms caches
            found[0].append((between_s - began_s) * 1e6 / CALLS)
            found[1].append((ended_s - between_s) * 1e6 / CALLS)
    return statistics.median(found[1]), statistics.median(found[0])


def _prepare(folder: Path) -> None:
    """A directive, and the repository of a fleet with 20 releases that the device knows already."""
    (folder / "directive").write_bytes(_directive())
    (folder / "keyset").write_bytes(codec.encode_json(KEYSET))
    (folder / "now_ms").write_text(str(NOW_MS))
    catalogue = open_catalogue(
        folder / "trust", may_make=True, random_bytes=os.urandom, now_ms=lambda: NOW_MS
    )
    catalogue.publish_document(KEYSET_PATH, codec.encode_json(KEYSET))
    files = [FileRef(f"{number:064x}", 1_000_000) for number in range(80)]
    catalogue.publish("digits", files[0], files[1:])
    (folder / "target").write_text(manifest_path("digits", files[0].digest))
    (folder / "repository").mkdir()
    for role, version in catalogue.versions().items():
        name = "timestamp.json" if role == "timestamp" else f"{version}.{role}.json"
        (folder / "repository" / name).write_bytes(catalogue.read(name) or b"")
    MetadataFiles(folder / "device").save("root", catalogue.read("1.root.json") or b"")


def _processes(folder: Path) -> dict[str, dict[str, float]]:
    """Return the medians of processes of each kind, started in turn; the first round warms."""
    rows: dict[str, list[dict[str, float]]] = {"none": [], "check": [], "metadata": []}
    environment = {**os.environ, "PYTHONPATH": str(CHILD.parents[2])}
    for number in range(PROCESSES + 1):
        for what, found in rows.items():
            done = subprocess.run(
                [sys.executable, str(CHILD), what, str(folder)],
                check=True,
                capture_output=True,
                env=environment,
            )
            if number:
                found.append(json.loads(done.stdout))
    return {
        what: {name: statistics.median(row[name] for row in found) for name in found[0]}
        for what, found in rows.items()
    }

"""A store with releases in every state, and the collector that looks after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fleet_contract import codec
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
    manifest_path,
)
from fleet_contract.sketches.features import FeatureSketches
from fleet_server.audit import service as audit
from fleet_server.collection.collector import Collector, Report
from fleet_server.database import Database
from fleet_server.provenance.statement import Attester
from fleet_server.releases import service as releases
from fleet_server.releases.laboratory.laboratory import Laboratory
from fleet_server.releases.resumable import ResumableUploads
from fleet_server.releases.sealing import outputs
from fleet_server.releases.staging import Staging
from fleet_server.releases.states import Problem
from fleet_server.releases.store import Store, provenance_path
from fleet_server.releases.uploads import Options, Upload
from fleet_server.trust.catalogue.repository import Catalogue
from fleet_server.trust.keyring import Keyring
from simulator.world.behaviour import SCHEMA

MODEL = "toy"
GRACE_MS = 3_600_000
OLD_S = 1_000_000.0
"""When everything in the store was written, unless a test says otherwise."""


@dataclass
class Yard:
    """Everything that the collector works on."""

    folder: Path
    database: Database
    catalogue: Catalogue
    clock: Any
    staging: Staging
    store: Store
    patches: Store
    uploads: ResumableUploads
    collector: Collector
    count: int = 0

    def release(self, version: str, state: str = "staged", *, published: bool = False) -> str:
        """Put a release into the store and the table; returns its manifest's digest."""
        self.count += 1
        files = [
            self.store.put_artifact(MODEL, [f"{version} {part}".encode()])
            for part in ("artifact", "golden", "baseline")
        ]
        manifest = _manifest(version, self.count, *files)
        sealed = self.store.put_manifest(MODEL, codec.encode_json(manifest))
        stated = self.store.put_provenance(MODEL, f"statement of {version}".encode())
        if published:
            self.catalogue.publish(MODEL, sealed, files)
        with self.database.transaction() as session:
            upload = Upload(f"{self.count:032x}", Options(MODEL, version), "0" * 64, 0)
            releases.register(session, upload, user="ann", correlation_id="c", now_ms=1)
            if state == "refused":
                problem = Problem("sealing", "x", "No.", "Push it again.")
                releases.mark_refused(session, MODEL, version, problem, now_ms=1)
            elif state != "staging":
                releases.mark_staged(
                    session,
                    MODEL,
                    version,
                    digest=sealed.digest,
                    manifest=manifest,
                    baseline=Baseline(FeatureSketches([], []), FeatureSketches([], [])),
                    statement=stated.digest,
                    card="0" * 64,
                    vouched=state != "unsigned",
                    now_ms=1,
                )
            if state == "revoked":
                releases.mark_revoked(session, MODEL, [version], now_ms=1)
        self.age()
        return sealed.digest

    def files(self, digest: str) -> set[str]:
        """What a release consists of, and what devices fetch of it."""
        found = self.store.find(manifest_path(MODEL, digest))
        assert found is not None
        manifest = codec.decode_json(found.path.read_bytes(), Manifest, limit_bytes=1 << 20)
        return set(outputs(manifest, digest))

    def age(self) -> None:
        """Let everything in the stores have been written long ago."""
        for room in ("store", "deltas"):
            for path in (self.folder / room).rglob("*"):
                if path.is_file():
                    os.utime(path, (OLD_S, OLD_S))

    def stored(self) -> set[str]:
        return {entry.path for entry in self.store.files()}

    def collect(self) -> Report:
        """Mark, wait until the grace is over, and look again."""
        self.collector.look(dry_run=False)
        self.clock.wall_ms += GRACE_MS
        return self.collector.look(dry_run=False)

    def audited(self) -> list[tuple[str, str]]:
        with self.database.reading() as session:
            found = audit.newest(session, count=1000)
        return [
            (entry.action, entry.resource_name) for entry in found if entry.action == "store.remove"
        ]


@pytest.fixture
def yard(
    tmp_path: Path, database: Database, keyring: Keyring, catalogue: Catalogue, clock: Any
) -> Iterator[Yard]:
    laboratory = Laboratory()
    store, patches = Store(tmp_path / "store"), Store(tmp_path / "deltas")
    attester = Attester(keyring.fleet, keyring.sign_checkpoint)
    staging = Staging(tmp_path, database, store, catalogue, attester, clock, laboratory)
    staging.incoming.mkdir()
    uploads = ResumableUploads(tmp_path / "uploads", most_bytes=1000)
    collector = Collector(
        tmp_path,
        database,
        staging,
        patches,
        uploads,
        catalogue,
        clock,
        fleet=keyring.fleet,
        interval_ms=0,
        grace_ms=GRACE_MS,
    )
    yield Yard(tmp_path, database, catalogue, clock, staging, store, patches, uploads, collector)
    laboratory.close()


@pytest.fixture
def proof_of() -> Callable[[str], str]:
    """Path of what proves where a version came from."""

    def path(digest: str) -> str:
        return provenance_path(MODEL, digest)

    return path


def _manifest(
    version: str, counter: int, artifact: FileRef, golden: FileRef, baseline: FileRef
) -> Manifest:
    return Manifest(
        model=MODEL,
        version=version,
        release_counter=counter,
        created_ms=0,
        least_agent=1,
        variants=[Variant("int8", Runtime.ONNXRUNTIME, "int8", artifact, Requirements(opset=17))],
        inputs=[TensorSpec("x", "float32", [None, 4])],
        outputs=[TensorSpec("logits", "float32", [None, 10])],
        features=SCHEMA,
        golden=GoldenVectors(golden, 0.9, 1.0),
        baseline=baseline,
        lineage=Lineage("0" * 64, None, {}, None),
    )

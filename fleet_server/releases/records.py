"""A release as others see it: read out of its row.

Decides how a row becomes a record for operators and a view for rollouts; what may become of a
release is decided in :mod:`fleet_server.releases.service`.
"""

from dataclasses import dataclass

from fleet_contract import codec, limits
from fleet_contract.manifest import Baseline, Manifest, manifest_path
from fleet_contract.trust.directive import ReleaseRef
from fleet_server.provenance.policy import Origin
from fleet_server.releases.repository import Row
from fleet_server.releases.states import Problem, ReleaseState, Stage, Step
from fleet_server.releases.uploads import Options, Upload


@dataclass(frozen=True, slots=True)
class ReleaseView:
    """A staged release, as rollouts see it. ``digest`` is that of the manifest's bytes."""

    model: str
    version: str
    digest: str
    manifest: Manifest
    ref: ReleaseRef
    baseline: Baseline
    stage: Stage


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    """A release in any state, as operators see it. Times in milliseconds since 1970.

    ``provenance`` is the digest of the sealed statement of its origin, None of a release that was
    staged by a server that wrote none; ``origin`` is what was verified of whoever signed the
    upload, None if nobody did. ``promoted_ms`` is when it came into production. ``card`` is the
    digest of the model card, None of a release without.
    """

    model: str
    version: str
    counter: int
    state: ReleaseState
    pushed_by: str
    correlation_id: str
    received_ms: int
    changed_ms: int
    attempts: int
    upload: Upload
    steps: list[Step]
    problem: Problem | None
    digest: str | None
    manifest: Manifest | None
    manifest_bytes: int
    provenance: str | None
    origin: Origin | None
    stage: Stage
    promoted_ms: int | None
    card: str | None = None


def read_steps(row: Row) -> list[Step]:
    """Return the finished steps of staging."""
    return codec.decode_json(row.steps.encode(), list[Step], limit_bytes=limits.MANIFEST_BYTES)


def read_manifest(row: Row) -> Manifest:
    """Return the manifest of a release that has one."""
    return codec.decode_json(row.manifest or b"", Manifest, limit_bytes=limits.MANIFEST_BYTES)


def read_view(row: Row) -> ReleaseView:
    """Return a staged release as rollouts see it."""
    digest = row.digest or ""
    return ReleaseView(
        row.model,
        row.version,
        digest,
        read_manifest(row),
        ReleaseRef(manifest_path(row.model, digest), digest),
        codec.decode_msgpack(row.baseline or b"", Baseline, limit_bytes=limits.MANIFEST_BYTES),
        Stage(row.stage),
    )


def read_record(row: Row) -> ReleaseRecord:
    """Return a release in any state as operators see it."""
    options = codec.decode_json(row.options.encode(), Options, limit_bytes=limits.MANIFEST_BYTES)
    problem = row.problem and codec.decode_json(
        row.problem.encode(), Problem, limit_bytes=limits.MANIFEST_BYTES
    )
    return ReleaseRecord(
        model=row.model,
        version=row.version,
        counter=row.counter,
        state=ReleaseState(row.state),
        pushed_by=row.pushed_by,
        correlation_id=row.correlation_id,
        received_ms=row.received_ms,
        changed_ms=row.changed_ms,
        attempts=row.attempts,
        upload=Upload(row.upload, options, row.source_digest, row.source_bytes),
        steps=read_steps(row),
        problem=problem or None,
        digest=row.digest,
        manifest=None if row.manifest is None else read_manifest(row),
        manifest_bytes=len(row.manifest or b""),
        provenance=row.provenance,
        origin=None if row.origin is None else read_origin(row.origin),
        stage=Stage(row.stage),
        promoted_ms=row.promoted_ms,
        card=row.card,
    )


def read_origin(text: str) -> Origin:
    """Return what was written down of a signature."""
    return codec.decode_json(text.encode(), Origin, limit_bytes=limits.ENVELOPE_BYTES)

"""Releases as the API shows them."""

from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from fleet_server.releases.origin import Signature
from fleet_server.releases.records import ReleaseRecord
from fleet_server.releases.states import OutputKind, ReleaseState, Stage
from fleet_server.trust.schemas import KeyIn

_SIZES: dict[str, Any] = {"size_bytes": 26_048, "share_of_float": 0.338}
_EXAMPLE: dict[str, Any] = {
    "model": "digits",
    "version": "1.1.0",
    "state": "staged",
    "counter": 2,
    "pushed_by": "admin",
    "correlation_id": "4f1c0c8a9be24d0e",
    "received_ms": 1_795_000_000_000,
    "changed_ms": 1_795_000_000_410,
    "output_kind": "logits",
    "notes": {"trained": "on the first 1,100 images"},
    "stage": "staging",
    "promoted_ms": None,
    "metadata": {"tags": ["vision"], "licence": "Apache-2.0", "metrics": {"accuracy": 0.97}},
    "source_digest": "5e2b0a53b45aa8b0a5ba0a83e9c2e4f4a9b6dba7d2f6f4c6c0b1d0a0d9b1c2d3",
    "source_bytes": 77_179,
    "origin": None,
    "steps": [{"name": "quantisation", "took_ms": 105, "figures": _SIZES}],
    "steps_to_do": [],
    "doing": None,
    "problem": None,
    "digest": "32057ad71a80a9d22253560bf471f887b75ba1f9027d2c0fd5dad9ef5808acba",
    "manifest": None,
}


class CandidateOut(BaseModel):
    """One form of the model that was tried; latencies are medians, on what ``timed_on`` says.

    Only a candidate that passes parity and is smaller is timed, in turns with the float model.
    """

    recipe: str
    passes: bool
    chosen: bool
    size_bytes: int | None
    agreement: float | None
    sqnr_db: float | None
    largest_difference: float | None
    sequence_agreement: float | None
    sequence_sqnr_db: float | None
    latency_us: float | None
    float_latency_us: float | None
    note: str
    timed_on: str


class GateOut(BaseModel):
    """One figure that a gate judged; without a bound it is only recorded.

    ``overridden`` is the reason for which a figure that did not pass was let through.
    """

    gate: str
    name: str
    figure: float | None
    bound: float | None
    passed: bool
    note: str
    overridden: str


class StepOut(BaseModel):
    """A finished step of staging and what it measured."""

    name: str
    took_ms: int
    figures: dict[str, str | int | float | bool | None]
    candidates: list[CandidateOut] = []
    gates: list[GateOut] = []


class RefusalOut(BaseModel):
    """Why a release was refused: the gate, and its figure and bound if it measured something."""

    gate: str
    code: str
    detail: str
    advice: str
    figure: float | None
    bound: float | None


class OriginOut(BaseModel):
    """Whose signature came with the model, as it was verified; ``bundle`` is the SHA-256 of it."""

    method: str
    identity: str
    fingerprint: str
    bundle: str
    verified_ms: int


class ReleaseOut(BaseModel):
    """A release. ``digest`` is that of its signed manifest, ``manifest`` its content; the list
    leaves the latter out. ``metadata`` is what the pusher said, without what was left out.
    """

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    model: str
    version: str
    state: ReleaseState
    counter: int
    pushed_by: str
    correlation_id: str
    received_ms: int
    changed_ms: int
    output_kind: OutputKind
    notes: dict[str, str]
    stage: Stage
    promoted_ms: int | None
    metadata: dict[str, Any]
    source_digest: str
    source_bytes: int
    origin: OriginOut | None
    steps: list[StepOut]
    steps_to_do: list[str]
    doing: str | None
    problem: RefusalOut | None
    digest: str | None
    manifest: dict[str, Any] | None


class ReleaseList(BaseModel):
    """A model's releases, the newest first."""

    releases: list[ReleaseOut]


class ModelOut(BaseModel):
    """A model: how many releases of it there are or were looked for, and of those the newest that
    is staged, the last that was promoted to production, and all tags.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "model": "digits",
                "releases": 3,
                "newest_staged": "2.0.0",
                "production": "1.1.0",
                "tags": ["vision"],
            }
        }
    )

    model: str
    releases: int
    newest_staged: str | None
    production: str | None
    tags: list[str]


class ModelList(BaseModel):
    """All models by name."""

    models: list[ModelOut]


def show(
    record: ReleaseRecord, steps: list[str], *, whole: bool, doing: str | None = None
) -> ReleaseOut:
    """Return a release as the API shows it, with its manifest if ``whole``.

    ``doing`` is what the step under way tries just now.
    """
    done = [step.name for step in record.steps]
    staging = record.state is ReleaseState.STAGING
    manifest = record.manifest if whole else None
    signed = record.origin
    problem = None if record.problem is None else msgspec.to_builtins(record.problem)
    return ReleaseOut(
        model=record.model,
        version=record.version,
        state=record.state,
        counter=record.counter,
        pushed_by=record.pushed_by,
        correlation_id=record.correlation_id,
        received_ms=record.received_ms,
        changed_ms=record.changed_ms,
        output_kind=record.upload.options.output_kind,
        notes=dict(record.upload.options.metadata.notes),
        stage=record.stage,
        promoted_ms=record.promoted_ms,
        metadata=msgspec.to_builtins(record.upload.options.metadata),
        source_digest=record.upload.source_digest,
        source_bytes=record.upload.source_bytes,
        origin=None if signed is None else OriginOut.model_validate(msgspec.to_builtins(signed)),
        steps=[StepOut.model_validate(msgspec.to_builtins(step)) for step in record.steps],
        steps_to_do=[name for name in steps if name not in done] if staging else [],
        doing=doing if staging else None,
        problem=None if problem is None else RefusalOut.model_validate(problem),
        digest=record.digest,
        manifest=None if manifest is None else msgspec.to_builtins(manifest),
    )


def show_model(model: str, records: list[ReleaseRecord]) -> ModelOut:
    """Return a model as the list shows it; its releases come the oldest first."""
    staged = [record for record in records if record.state is ReleaseState.STAGED]
    production = [record for record in staged if record.stage is Stage.PRODUCTION]
    last = max(production, key=lambda record: record.promoted_ms or 0, default=None)
    tags = {tag for record in records for tag in record.upload.options.metadata.tags}
    return ModelOut(
        model=model,
        releases=len(records),
        newest_staged=staged[-1].version if staged else None,
        production=None if last is None else last.version,
        tags=sorted(tags),
    )


class ProvenanceOut(BaseModel):
    """The sealed statement of what a release was made of, and what is wrong with it.

    ``envelope`` is the DSSE envelope as it was written, ``digest`` its SHA-256; ``keys`` are the
    public keys that are believed now, by their ids.
    """

    digest: Annotated[str, Field(examples=["32057ad71a80a9d22253560bf471f887b75ba1f9027d2c0f"])]
    signature: Annotated[Signature, Field(examples=["believed"])]
    findings: list[str]
    envelope: str
    keys: dict[str, str]


class RevocationIn(BaseModel):
    """Why a release is revoked, and whether the older ones may fall with it."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(min_length=1, max_length=500, examples=["it leaks its data"])]
    with_older: bool = False


class RevocationOut(BaseModel):
    """What fell; ``committed`` says that devices learn of it now."""

    versions: Annotated[list[str], Field(examples=[["2.0.0"]])]
    digests: list[str]
    floor: int
    committed: bool


class MoveIn(BaseModel):
    """Why a release is moved to another stage."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(min_length=1, max_length=500, examples=["two weeks of shadow"])]


class PromoteIn(MoveIn):
    """Why a release is promoted; ``force``: although it has not shown what production asks for."""

    force: bool = False


class FamilyKeyIn(BaseModel):
    """The public keys of a model's family; none means one that the server makes."""

    model_config = ConfigDict(extra="forbid")

    keys: Annotated[list[KeyIn], Field(max_length=16)] = []
    threshold: Annotated[int, Field(ge=1, le=16)] = 1

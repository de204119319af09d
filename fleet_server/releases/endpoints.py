"""Models, releases and the store over HTTP.

Decides how a push is answered (202 and where to look) and how files are served: by range, for ever
cacheable. Who may read the store is decided by whoever mounts it, since devices are a domain that
releases know nothing of.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Query, Request, Response, status
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from fleet_server.access.authentication import Operator
from fleet_server.access.permissions import Permission
from fleet_server.api_names import ModelName, Version
from fleet_server.audit import service as audit
from fleet_server.errors import NotFound
from fleet_server.immutable_files import answer_file
from fleet_server.locations import beginnings
from fleet_server.provenance.policy import Policy
from fleet_server.releases import intake, origin, pipeline, revocation, schemas, service
from fleet_server.releases.elsewhere import FOUND_ELSEWHERE, lead_elsewhere
from fleet_server.releases.finding import SEARCH_CHARACTERS, Wanted
from fleet_server.releases.metadata import TAG_PATTERN
from fleet_server.releases.records import ReleaseRecord
from fleet_server.releases.resumable_endpoints import UsedUploads
from fleet_server.releases.schemas import (
    FamilyKeyIn,
    ModelList,
    ProvenanceOut,
    ReleaseList,
    ReleaseOut,
    RevocationIn,
    RevocationOut,
)
from fleet_server.releases.staging import Staging
from fleet_server.releases.states import Stage
from fleet_server.releases.uploads import VARIANT_FILES
from fleet_server.request_context import CorrelationId, UsedClock, UsedDatabase, UsedSettings
from fleet_server.trust.ceremonies import held_keys, note
from fleet_server.trust.endpoints import UsedCatalogue, UsedKeyring
from fleet_server.trust.schemas import Outcome

models = APIRouter(prefix="/v1/models", tags=["models"])

STEPS = list(pipeline.STEPS)
_FOR_EVER = "private, max-age=31536000, immutable"
_BINARY = {"type": "string", "format": "binary"}
_FORM: dict[str, Any] = {
    "type": "object",
    "required": ["version"],
    "description": "A file is a part of the form, or an upload in pieces that is named instead: "
    "model, calibration and golden are needed, in either way.",
    "properties": {
        "version": {"type": "string", "example": "1.0.0"},
        "output_kind": {"type": "string", "enum": ["logits", "probabilities", "values"]},
        "agreement": {"type": "number", "minimum": 0.5, "maximum": 1, "default": 0.99},
        "metadata": {
            "type": "string",
            "description": "JSON: classes (names in order), tags, licence (SPDX), owner, "
            "git_commit, dataset_hash, datasets and sources (name: URI below the allowed "
            "beginnings), hyperparameters, metrics, training_ms, environment_lock (SHA-256), "
            "run_id, imported_from, notes",
            "example": '{"classes": ["cat", "dog"], "datasets": {"train": "s3://bucket/train"}}',
        },
        "interface": {
            "type": "string",
            "description": "JSON: what the file does not say of inputs and outputs",
            "example": '{"shapes": {"state": [2, "n", 128]}, "constants": {"sr": 16000}, '
            '"states": {"state": "stateN"}}',
        },
        "size_budget_bytes": {"type": "integer", "minimum": 1},
        "bench": {
            "type": "string",
            "description": "JSON: labels of the bench devices that may time the main artifact",
            "example": '{"hardware": "pi4"}',
        },
        "model": {**_BINARY, "description": "float ONNX or TFLite, its first axis the batch"},
        "calibration": {**_BINARY, "description": "npz: input name → examples"},
        "golden": {
            **_BINARY,
            "description": "npz: examples on which int8 must agree with "
            "float; `output:NAME` holds the training framework's own outputs",
        },
        "baseline": {**_BINARY, "description": "npz: examples as in use; default: calibration"},
        "evaluation": {
            **_BINARY,
            "description": "npz: inputs, `label`, and `slice:NAME` columns, for the gates",
        },
        "metric": {"type": "string", "enum": ["accuracy", "auc", "f1", "rmse", "mae"]},
        "numpy": {
            "type": "string",
            "description": "the oldest numpy that a device may have",
            "example": "2.0",
        },
        "metric_margin": {"type": "number", "description": "least gain over production"},
        "slice_margin": {"type": "number", "minimum": 0, "description": "most loss of a slice"},
        "overrides": {
            "type": "string",
            "description": "JSON: gate → reason; needs the permission `force-gate`",
            "example": '{"latency": "the larger model is meant"}',
        },
        "approve_schema": {
            "type": "string",
            "maxLength": 500,
            "description": "why inputs, outputs or classes may change; needs `force-gate`",
        },
        **{
            name: {"type": "string", "description": f"id of a complete upload: {field}"}
            for name, field in intake.REFERENCES.items()
        },
        "variants": {
            "type": "string",
            "description": "JSON list of further artifacts: name, machines, labels, memory_bytes, "
            "recipe, and file, the field that holds its own model",
            "example": '[{"name": "pi4", "machines": ["aarch64"], "recipe": "float16"}]',
        },
        **{name: {**_BINARY, "description": "a variant's own model"} for name in VARIANT_FILES},
        "signature": {**_BINARY, "description": "model.sig, as OpenSSF Model Signing writes it"},
    },
}


def _staging(request: Request) -> Staging:
    return cast(Staging, request.app.state.staging)


def _policy(request: Request) -> Policy:
    return cast(Policy, request.app.state.provenance_policy)


def _wanted(
    tag: Annotated[str | None, Query(pattern=TAG_PATTERN.replace(r"\Z", "$"))] = None,
    search: Annotated[str | None, Query(min_length=1, max_length=SEARCH_CHARACTERS)] = None,
    stage: Stage | None = None,
) -> Wanted:
    """Which releases are looked for; ``search`` is a word in what names or describes them."""
    return Wanted(tag, search, stage)


UsedWanted = Annotated[Wanted, Depends(_wanted)]
UsedPolicy = Annotated[Policy, Depends(_policy)]
UsedStaging = Annotated[Staging, Depends(_staging)]


@models.post(
    "/{model}/releases",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Push a release",
    openapi_extra={
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
    },
)
async def push_release(
    model: ModelName,
    request: Request,
    response: Response,
    operator: Operator,
    database: UsedDatabase,
    staging: UsedStaging,
    settings: UsedSettings,
    policy: UsedPolicy,
    uploads: UsedUploads,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> ReleaseOut:
    """Take a float model and stage it in the background; ask the Location for how it goes."""
    upload = await intake.receive(
        request.stream(),
        request.headers.get("content-type", ""),
        model=model,
        allowed_locations=beginnings(settings.allowed_locations),
        incoming=staging.incoming,
        name=clock.random_bytes(16).hex(),
        claim=partial(uploads.claim, operator.name),
    )

    def register() -> ReleaseRecord:
        now_ms = clock.now_ms()
        try:
            if upload.options.relaxed():
                operator.require(Permission.FORCE_GATE)
            found = policy.examine(model, upload.source_digest, upload.signature, now_ms=now_ms)
            for digest in upload.variant_digests.values():
                # Whoever must sign the model must sign what ships beside it.
                policy.examine(model, digest, upload.signature, now_ms=now_ms)
            if found is not None:
                staging.store.put_provenance(model, upload.signature)
            with database.transaction() as session:
                record = service.register(
                    session,
                    upload,
                    user=operator.name,
                    correlation_id=correlation_id,
                    now_ms=now_ms,
                    origin=found,
                )
        except BaseException:
            staging.discard(upload)
            raise
        for used in upload.made_of:
            with suppress(NotFound):  # its owner dropped it meanwhile; the release has its own name
                uploads.drop(operator.name, used)
        # In this thread, too: a request that is given up now would leave it unstaged.
        staging.submit(record.model, record.version)
        return record

    record = await run_in_threadpool(register)
    response.headers["Location"] = f"/v1/models/{record.model}/releases/{record.version}"
    return schemas.show(record, STEPS, whole=False)


@models.get("", summary="All models")
def list_models(operator: Operator, database: UsedDatabase, wanted: UsedWanted) -> ModelList:
    """Every model that was ever pushed, by name, or those that have a release that is looked for;
    of a limited token, its own.
    """
    with database.reading() as session:
        found = service.models(session)
    own = {model: wanted.choose(found[model]) for model in found if operator.sees(model)}
    return ModelList(models=[schemas.show_model(*item) for item in own.items() if item[1]])


@models.get("/{model}/releases", summary="A model's releases")
def list_releases(
    model: ModelName, _operator: Operator, database: UsedDatabase, wanted: UsedWanted
) -> ReleaseList:
    """The newest first, in whatever state they are: all, or those that are looked for."""
    with database.reading() as session:
        records = wanted.choose(service.of_model(session, model))
    return ReleaseList(releases=[schemas.show(record, STEPS, whole=False) for record in records])


@models.get("/{model}/releases/{version}", summary="One release")
def read_release(
    model: ModelName,
    version: Version,
    _operator: Operator,
    database: UsedDatabase,
    staging: UsedStaging,
) -> ReleaseOut:
    """How far it is, what staging measured, or which gate refused it; staged, its manifest."""
    with database.reading() as session:
        record = service.get(session, model, version)
    doing = staging.doing(model, version)
    return schemas.show(record, STEPS, whole=True, doing=doing)


@models.get("/{model}/releases/{version}/provenance", summary="What a release was made of")
def read_provenance(
    model: ModelName,
    version: Version,
    _operator: Operator,
    staging: UsedStaging,
    keyring: UsedKeyring,
    database: UsedDatabase,
) -> ProvenanceOut:
    """The sealed in-toto statement of its staging, checked against the release."""
    with database.reading() as session:
        record = service.get(session, model, version)
    proof = origin.prove(record, staging.store, keyring.checkpoint_keys())
    return ProvenanceOut(
        digest=proof.digest,
        signature=proof.signature,
        findings=proof.findings,
        envelope=proof.envelope.decode(),
        keys={keyid: key.hex() for keyid, key in keyring.checkpoint_keys().items()},
    )


@models.post("/{model}/releases/{version}/revoke", summary="Revoke a release")
def revoke_release(
    model: ModelName,
    version: Version,
    body: RevocationIn,
    operator: Operator,
    catalogue: UsedCatalogue,
    keyring: UsedKeyring,
    database: UsedDatabase,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> RevocationOut:
    """No device goes to it any more, nor to older ones of the model; what runs goes on running."""
    now_ms = clock.now_ms()
    with database.transaction() as session:
        fallen = revocation.revoke(
            session, model, version, with_older=body.with_older, now_ms=now_ms
        )
        audit.record(
            session,
            action="release.revoke",
            resource_type="release",
            resource_name=f"{model}/{version}",
            outcome="done",
            user=operator.name,
            correlation_id=correlation_id,
            detail={"versions": fallen.versions, "floor": fallen.floor},
            now_ms=now_ms,
            model_name=model,
            model_version=version,
            reason=body.reason,
        )
        found = service.models(session)
    committed = revocation.enforce(found, catalogue, keyring)
    digests = [item.digest or "" for item in found[model] if item.version in fallen.versions]
    return RevocationOut(
        versions=fallen.versions, digests=digests, floor=fallen.floor, committed=committed
    )


@models.post("/{model}/key", summary="Give a model's family other keys")
def rotate_family(
    model: ModelName,
    body: FamilyKeyIn,
    operator: Operator,
    catalogue: UsedCatalogue,
    database: UsedDatabase,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> Outcome:
    """They vouch for the releases that the server knows, and for nothing that a thief added."""
    with database.reading() as session:
        records = service.models(session).get(model, [])
    keys = held_keys(body.keys)
    done = revocation.rotate_family(catalogue, model, records, keys, body.threshold)
    detail = {"keys": [key.keyid for key in keys], "threshold": body.threshold}
    name = f"model.{model}"
    note(database, operator, "trust.rotate", name, done, detail, clock.now_ms(), correlation_id)
    return Outcome(committed=done, what=f"another key for the family {model}")


def store_router(admit: Callable[..., object]) -> APIRouter:
    """Return the routes of the store; ``admit`` is a dependency that raises for strangers."""
    router = APIRouter(prefix="/v1/store", tags=["store"], dependencies=[Depends(admit)])
    router.get(
        "/{path:path}",
        summary="A file of a release",
        response_class=FileResponse,
        responses={206: {"description": "The range that was asked for."}, **FOUND_ELSEWHERE},
    )(read_store)
    router.head(
        "/{path:path}",
        summary="Whether the store has a file, and how large it is",
        response_class=FileResponse,
    )(read_store)
    return router


def read_store(path: str, request: Request, staging: UsedStaging) -> Response:
    """A manifest or an artifact: immutable, by range if asked for, tagged by its SHA-256."""
    found = staging.store.find(path)
    if found is None:
        raise NotFound("no_such_file", "The store holds no such file.")
    elsewhere = lead_elsewhere(request, staging.store, path)
    return elsewhere or answer_file(request, found.path, digest=found.digest, keep=_FOR_EVER)

"""The audit over HTTP: reading, exporting, verifying, and signing where the chain stands.

Who may do so is decided by whoever mounts the routes, since access writes into the audit itself.
"""

from collections.abc import Callable
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Query, Request, Response

from fleet_server.audit import service, verification
from fleet_server.audit.schemas import (
    AuditEntry,
    AuditPage,
    CheckpointList,
    CheckpointShown,
    VerificationShown,
)
from fleet_server.audit.verification import Seal
from fleet_server.errors import Conflict
from fleet_server.request_context import CorrelationId, UsedClock, UsedDatabase, UsedSettings

NDJSON = "application/x-ndjson"
MANY = 2**53


def _seal(request: Request) -> Seal:
    return cast(Seal, request.app.state.audit_seal)


def _user(request: Request) -> str:
    return cast(str, request.state.user)


UsedSeal = Annotated[Seal, Depends(_seal)]
UserName = Annotated[str, Depends(_user)]


def audit_router(admit: Callable[..., object]) -> APIRouter:
    """Return the routes; ``admit`` raises for strangers and notes who asks."""
    router = APIRouter(prefix="/v1/audit", tags=["audit"], dependencies=[Depends(admit)])
    router.get("", summary="What was done, the newest first")(read_audit)
    router.get("/verification", summary="Whether the chain is intact")(verify_chain)
    router.get(
        "/export",
        summary="Records as they were hashed, a line each",
        response_class=Response,
        responses={200: {"content": {NDJSON: {"schema": {"type": "string"}, "example": "{}\n"}}}},
    )(export_records)
    router.get("/checkpoints", summary="The signed checkpoints")(list_checkpoints)
    router.post("/checkpoints", status_code=201, summary="Sign the chain as it is now")(
        make_checkpoint
    )
    return router


def read_audit(
    database: UsedDatabase,
    before: Annotated[int | None, Query(ge=0, le=MANY, description="a sequence number")] = None,
    count: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> AuditPage:
    """Every mutating call and every automatic decision, with its correlation id."""
    with database.reading() as session:
        entries = service.newest(session, before=before, count=count)
    return AuditPage(
        entries=[AuditEntry.of(entry) for entry in entries],
        next_before=entries[-1].sequence if len(entries) == count else None,
    )


def verify_chain(
    database: UsedDatabase, seal: UsedSeal, settings: UsedSettings
) -> VerificationShown:
    """Reads every record: a moment for thousands, a minute for millions."""
    with database.reading() as session:
        return VerificationShown.of(
            verification.verify(session, seal.believed(), fleet=settings.fleet)
        )


def export_records(
    database: UsedDatabase,
    after: Annotated[int, Query(ge=0, le=MANY, description="a sequence number")] = 0,
    count: Annotated[int, Query(ge=1, le=1_000)] = 1_000,
) -> Response:
    """JSON lines in order. The SHA-256 of each line, without its end, is the next one's
    ``previous``; an empty answer is the end.
    """
    with database.reading() as session:
        text = verification.export(session, after=after, count=count)
    return Response(text, media_type=NDJSON)


def list_checkpoints(
    database: UsedDatabase, seal: UsedSeal, settings: UsedSettings
) -> CheckpointList:
    """DSSE envelopes; keep them where the server's operators cannot write."""
    with database.reading() as session:
        found = verification.checkpoints(session)
    return CheckpointList(
        fleet=settings.fleet,
        keys={name: key.hex() for name, key in seal.believed().items()},
        checkpoints=[CheckpointShown.model_validate(item) for item in found],
    )


def make_checkpoint(
    user: UserName,
    database: UsedDatabase,
    seal: UsedSeal,
    settings: UsedSettings,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> CheckpointShown:
    """Whatever is altered before it from now on is found, whoever can write the database."""
    now_ms = clock.now_ms()
    with database.transaction() as session:
        made = verification.make_checkpoint(session, seal, fleet=settings.fleet, now_ms=now_ms)
        if made is None:
            raise Conflict("empty_chain", "There is nothing in the audit yet.")
        service.record(
            session,
            action="audit.checkpoint",
            resource_type="audit",
            resource_name=str(made.sequence),
            outcome="done",
            user=user,
            correlation_id=correlation_id,
            detail={},
            now_ms=now_ms,
        )
    return CheckpointShown.model_validate(made)

"""Promoting and archiving releases over HTTP; what each means is decided in .lifecycle."""

from fastapi import APIRouter

from fleet_server.access.authentication import Operator
from fleet_server.access.permissions import Permission
from fleet_server.api_names import ModelName, Version
from fleet_server.releases import lifecycle, pipeline, schemas
from fleet_server.releases.schemas import MoveIn, PromoteIn, ReleaseOut
from fleet_server.request_context import CorrelationId, UsedClock, UsedDatabase

router = APIRouter(prefix="/v1/models/{model}/releases/{version}", tags=["models"])


@router.post("/promote", summary="Promote a release to production")
def promote_release(
    model: ModelName,
    version: Version,
    body: PromoteIn,
    operator: Operator,
    database: UsedDatabase,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> ReleaseOut:
    """From then on it may be rolled out in fleets whose environment is production.

    A release that has not shown what production asks for needs `force`, and that `force-gate`.
    """
    if body.force:
        operator.require(Permission.FORCE_GATE)
    with database.transaction() as session:
        record = lifecycle.move(
            session,
            model,
            version,
            "promote",
            reason=body.reason,
            user=operator.name,
            correlation_id=correlation_id,
            now_ms=clock.now_ms(),
            force=body.force,
        )
    return schemas.show(record, list(pipeline.STEPS), whole=False)


@router.post("/archive", summary="Archive a release")
def archive_release(
    model: ModelName,
    version: Version,
    body: MoveIn,
    operator: Operator,
    database: UsedDatabase,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> ReleaseOut:
    """No new rollout goes to it. What runs goes on, and devices may return to what they hold."""
    with database.transaction() as session:
        record = lifecycle.move(
            session,
            model,
            version,
            "archive",
            reason=body.reason,
            user=operator.name,
            correlation_id=correlation_id,
            now_ms=clock.now_ms(),
        )
    return schemas.show(record, list(pipeline.STEPS), whole=False)

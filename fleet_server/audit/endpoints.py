"""The audit over HTTP, for reading only."""

from typing import Annotated

from fastapi import APIRouter, Query

from fleet_server.access.authentication import Operator
from fleet_server.audit import service
from fleet_server.audit.schemas import AuditEntry, AuditPage
from fleet_server.request_context import UsedDatabase

router = APIRouter(prefix="/v1/audit", tags=["audit"])


@router.get("", summary="What was done, the newest first")
def read_audit(
    _operator: Operator,
    database: UsedDatabase,
    before: Annotated[int | None, Query(ge=0, le=2**53, description="a sequence number")] = None,
    count: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> AuditPage:
    """Every mutating call and every automatic decision, with its correlation id."""
    with database.reading() as session:
        entries = service.newest(session, before=before, count=count)
    return AuditPage(
        entries=[AuditEntry.model_validate(entry) for entry in entries],
        next_before=entries[-1].sequence if len(entries) == count else None,
    )

"""What nobody needs any more, over HTTP: to look at, and to be taken out now."""

from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict

from fleet_server.access.authentication import Operator
from fleet_server.audit import service as audit
from fleet_server.collection.collector import Collector, Garbage, Report
from fleet_server.request_context import CorrelationId, UsedClock, UsedDatabase

router = APIRouter(prefix="/v1/garbage", tags=["store"])

SHOWN = 1_000
_EXAMPLE: dict[str, Any] = {
    "path": "store/artifacts/detector/"
    "5e2b0a53b45aa8b0a5ba0a83e9c2e4f4a9b6dba7d2f6f4c6c0b1d0a0d9b1c2d3",
    "size_bytes": 26_048,
    "marked_ms": 1_795_000_000_000,
    "due_ms": 1_795_086_400_000,
}


class GarbageOut(BaseModel):
    """A file of the store that nobody needs: found at ``marked_ms``, it goes after ``due_ms``."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"example": _EXAMPLE})

    path: str
    size_bytes: int
    marked_ms: int
    due_ms: int


class CollectionOut(BaseModel):
    """A look through the store. The lists have up to 1,000 files, the counts are of all."""

    kept_files: int
    kept_bytes: int
    garbage_files: int
    garbage_bytes: int
    garbage: list[GarbageOut]
    removed_files: int
    removed_bytes: int
    removed: list[GarbageOut]


def _collector(request: Request) -> Collector:
    return cast(Collector, request.app.state.collector)


UsedCollector = Annotated[Collector, Depends(_collector)]


@router.get("", summary="What nobody needs")
def list_garbage(_operator: Operator, collector: UsedCollector) -> CollectionOut:
    """Changes nothing: what is not marked yet is shown as if it were marked now."""
    return _show(collector.look(dry_run=True))


@router.post("", summary="Take out what nobody needs")
def collect_garbage(
    operator: Operator,
    collector: UsedCollector,
    database: UsedDatabase,
    clock: UsedClock,
    correlation_id: CorrelationId,
) -> CollectionOut:
    """Mark what is new, and remove what was marked a grace ago, as the server does by itself."""
    found = collector.look(dry_run=False, user=operator.name, correlation_id=correlation_id)
    with database.transaction() as session:
        audit.record(
            session,
            action="store.collect",
            resource_type="store",
            resource_name="store",
            outcome="done",
            user=operator.name,
            correlation_id=correlation_id,
            detail={"garbage_files": len(found.garbage), "removed_files": len(found.removed)},
            now_ms=clock.now_ms(),
        )
    return _show(found)


def _show(report: Report) -> CollectionOut:
    return CollectionOut(
        kept_files=report.kept_files,
        kept_bytes=report.kept_bytes,
        garbage_files=len(report.garbage),
        garbage_bytes=_bytes(report.garbage),
        garbage=[GarbageOut.model_validate(item) for item in report.garbage[:SHOWN]],
        removed_files=len(report.removed),
        removed_bytes=_bytes(report.removed),
        removed=[GarbageOut.model_validate(item) for item in report.removed[:SHOWN]],
    )


def _bytes(items: list[Garbage]) -> int:
    return sum(item.size_bytes for item in items)

"""What the audit keeps of uploads in pieces: who began, dropped or lost which file."""

from sqlmodel import Session

from fleet_server.audit import service as audit
from fleet_server.releases.partial import View


def note(
    session: Session, view: View, action: str, user: str, correlation_id: str, now_ms: int
) -> None:
    """Write an action on an upload into the audit, in this transaction."""
    audit.record(
        session,
        action=action,
        resource_type="upload",
        resource_name=view.id,
        outcome="done",
        user=user,
        correlation_id=correlation_id,
        detail={"field": view.field, "size_bytes": view.size_bytes, "sha256": view.sha256},
        now_ms=now_ms,
    )

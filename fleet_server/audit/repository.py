"""Adds to the audit and reads it; there is nothing here that changes an entry."""

from typing import Any

from sqlmodel import Session, col, select

from fleet_server.audit.tables import AuditRow


def add(session: Session, **values: Any) -> None:
    """Append an entry with these columns."""
    session.add(AuditRow(**values))
    session.flush()


def newest(session: Session, *, before: int | None, count: int) -> list[AuditRow]:
    """The newest entries below a sequence number, the newest first."""
    query = select(AuditRow).order_by(col(AuditRow.sequence).desc()).limit(count)
    if before is not None:
        query = query.where(col(AuditRow.sequence) < before)
    return list(session.exec(query))

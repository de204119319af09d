"""Records who did what, or what the system decided by itself, in the transaction that does it.

Decides that an entry and what it is about are committed together or not at all. What happens to
be worth an entry is decided by the callers: every mutating call and every automatic decision.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session

from fleet_server.audit import repository

SYSTEM = "system"
"""The user of automatic decisions."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the audit; ``at_ms`` is the server's time since 1970."""

    sequence: int
    at_ms: int
    user: str
    action: str
    resource_type: str
    resource_name: str
    outcome: str
    correlation_id: str
    detail: dict[str, Any]


def record(
    session: Session,
    *,
    action: str,
    resource_type: str,
    resource_name: str,
    outcome: str,
    user: str,
    correlation_id: str,
    detail: Mapping[str, Any],
    now_ms: int,
) -> None:
    """Append an entry. ``detail`` must be JSON and must hold no secret."""
    repository.add(
        session,
        at_ms=now_ms,
        user=user,
        action=action,
        resource_type=resource_type,
        resource_name=resource_name[:300],
        outcome=outcome,
        correlation_id=correlation_id,
        detail=dict(detail),
    )


def newest(session: Session, *, before: int | None = None, count: int = 100) -> list[Entry]:
    """Return the newest entries below the sequence number ``before``, the newest first."""
    return [
        Entry(
            sequence=row.sequence or 0,
            at_ms=row.at_ms,
            user=row.user,
            action=row.action,
            resource_type=row.resource_type,
            resource_name=row.resource_name,
            outcome=row.outcome,
            correlation_id=row.correlation_id,
            detail=row.detail,
        )
        for row in repository.newest(session, before=before, count=count)
    ]

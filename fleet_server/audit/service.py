"""Records who did what, or what the system decided by itself, in the transaction that does it.

Decides that a record and what it is about are committed together or not at all, and that records
form one chain whoever writes: they are appended at the very end of a transaction, under the lock
of the chain's head, which is the last lock that any transaction takes. What is worth a record is
decided by the callers: every mutating call and every automatic decision.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import event
from sqlmodel import Session

from fleet_server.audit import chain, repository
from fleet_server.audit.origin import ORIGIN

SYSTEM = "system"
"""The user of automatic decisions."""
SERVER = "edgefleet-server"
"""The agent of automatic decisions."""
ENVIRONMENT = "environment"
"""Under this name a session knows the fleet's environment."""
RELEASE_RECORDS = 10_000
_PENDING = "audit_pending"


@dataclass(frozen=True, slots=True)
class Entry:
    """One record of the audit; ``timestamp`` is the server's time, RFC 3339 in UTC.

    ``agent`` is the program that did it and ``command`` what it called; both are the server's own
    for automatic decisions. ``rollback_config`` says how to return, where that is known.
    """

    sequence: int
    timestamp: str
    agent: str
    user: str
    environment: str
    command: str
    resource_type: str
    resource_name: str
    action: str
    model_name: str
    model_version: str
    previous_version: str
    change_ticket: str
    outcome: str
    rollback_config: dict[str, Any] | None
    duration_ms: int | None
    reason: str
    skipped_safeguards: list[str]
    correlation_id: str
    detail: dict[str, Any]
    previous: str
    hash: str


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
    model_name: str = "",
    model_version: str = "",
    previous_version: str = "",
    rollback_config: Mapping[str, Any] | None = None,
    reason: str = "",
    skipped_safeguards: Sequence[str] = (),
) -> None:
    """Append a record when the transaction commits.

    ``detail`` and ``rollback_config`` must be JSON and must hold no secret.
    """
    origin = ORIGIN.get()
    fields = {
        "timestamp": _written(now_ms),
        "agent": origin.agent if origin is not None else SERVER,
        "user": user[:100],
        "environment": str(session.info.get(ENVIRONMENT, "")),
        "command": origin.command if origin is not None else action,
        "resource_type": resource_type[:63],
        "resource_name": resource_name[:300],
        "action": action[:63],
        "model_name": model_name[:64],
        "model_version": model_version[:100],
        "previous_version": previous_version[:100],
        "change_ticket": origin.change_ticket if origin is not None else "",
        "outcome": outcome[:63],
        "rollback_config": None if rollback_config is None else dict(rollback_config),
        "duration_ms": origin.elapsed_ms() if origin is not None else None,
        "reason": reason[:1000],
        "skipped_safeguards": list(skipped_safeguards),
        "correlation_id": correlation_id[:64],
        "detail": dict(detail),
    }
    pending = session.info.get(_PENDING)
    if pending is None:
        pending = session.info[_PENDING] = []
        event.listen(session, "before_commit", _append)
    pending.append(fields)


def change_ticket() -> str:
    """Return the ticket that the present call was made under, empty if there is none."""
    origin = ORIGIN.get()
    return origin.change_ticket if origin is not None else ""


def newest(session: Session, *, before: int | None = None, count: int = 100) -> list[Entry]:
    """Return the newest entries below the sequence number ``before``, the newest first."""
    return [_entry(row) for row in repository.newest(session, before=before, count=count)]


def of_release(session: Session, model: str, version: str) -> list[Entry]:
    """Return what happened to a release, the oldest first; at most ten thousand entries."""
    rows = repository.of_release(session, model, version, count=RELEASE_RECORDS)
    return [_entry(row) for row in rows]


def at_ms(timestamp: str) -> int:
    """Return a record's time in milliseconds since 1970."""
    return round(datetime.fromisoformat(timestamp).timestamp() * 1_000)


def _append(session: Session) -> None:
    # Locked late: whoever else waits for the head holds it for the few statements of a commit.
    pending = session.info[_PENDING]
    end = repository.head(session, lock=True)
    for fields in pending:
        sequence = end.sequence + 1
        text, hashed = chain.seal(fields, sequence=sequence, previous=end.hash)
        repository.append(
            session,
            end,
            sequence=sequence,
            model_name=fields["model_name"],
            model_version=fields["model_version"],
            record=text,
            hash=hashed,
        )
    pending.clear()


def _written(now_ms: int) -> str:
    moment = datetime.fromtimestamp(now_ms / 1_000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _entry(row: repository.Row) -> Entry:
    return Entry(**json.loads(row.record), hash=row.hash)

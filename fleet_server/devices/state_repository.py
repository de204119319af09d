"""Reads and writes what devices say of themselves: presence, progress and refusals."""

from collections.abc import Collection, Iterable
from typing import Any

import sqlalchemy
from sqlmodel import Session, col, func, select

from fleet_contract.errors import Reason
from fleet_contract.messages.progress import ModelProgress, Phase
from fleet_server.devices.tables import PresenceRow, ProgressRow, RefusalRow, ReportedRow


def presence(
    session: Session, fleet: str, names: Collection[str] | None = None
) -> dict[str, PresenceRow]:
    """Device → its presence; ``names`` limits what is read."""
    query = select(PresenceRow).where(PresenceRow.fleet == fleet)
    if names is not None:
        query = query.where(col(PresenceRow.device).in_(list(names)))
    return {row.device: row for row in session.exec(query)}


def presence_of(session: Session, fleet: str, device: str) -> PresenceRow | None:
    """The presence of one device."""
    return session.get(PresenceRow, (fleet, device))


def load(session: Session, fleet: str, names: Collection[str]) -> list[object]:
    """Read what is asked for one by one afterwards in two statements for all of these devices.

    The session forgets rows that nobody holds: keep what is returned until the batch is done.
    """
    marks = select(ReportedRow).where(
        ReportedRow.fleet == fleet, col(ReportedRow.device).in_(list(names))
    )
    return [*presence(session, fleet, names).values(), *session.exec(marks)]


def save(session: Session, row: PresenceRow | ReportedRow) -> None:
    """Write a presence, or up to where progress is committed."""
    session.add(row)


def new_presence(**values: Any) -> PresenceRow:
    """A presence that is not stored yet."""
    return PresenceRow(**values)


def new_reported(**values: Any) -> ReportedRow:
    """A mark that is not stored yet."""
    return ReportedRow(**values)


def reported(session: Session, fleet: str, device: str) -> ReportedRow | None:
    """Up to where the device's progress is committed."""
    return session.get(ReportedRow, (fleet, device))


def progress(
    session: Session, fleet: str, names: Collection[str] | None = None
) -> dict[str, dict[str, ModelProgress]]:
    """Device → model → its progress; ``names`` limits what is read."""
    query = select(ProgressRow).where(ProgressRow.fleet == fleet)
    if names is not None:
        query = query.where(col(ProgressRow.device).in_(list(names)))
    found: dict[str, dict[str, ModelProgress]] = {}
    for row in session.exec(query):
        found.setdefault(row.device, {})[row.model] = ModelProgress(
            model=row.model,
            rollout=row.rollout,
            phase=Phase(row.phase),
            target=row.target,
            active=row.active,
            standby=row.standby,
            generation=row.generation,
            epoch=row.epoch,
            changed_ms=row.changed_ms,
            reason=Reason(row.reason) if row.reason else None,
            detail=row.detail,
        )
    return found


def running(session: Session, fleet: str) -> dict[str, int]:
    """Manifest digest → on how many devices it is active."""
    query = (
        select(ProgressRow.active, func.count())
        .where(ProgressRow.fleet == fleet, ProgressRow.active != "")
        .group_by(ProgressRow.active)
    )
    return dict(session.exec(query).all())


def replace_progress(
    session: Session, fleet: str, device: str, models: Iterable[ModelProgress]
) -> None:
    """Write what a progress message says in place of what the one before it said."""
    session.connection().execute(
        sqlalchemy.delete(ProgressRow).where(
            col(ProgressRow.fleet) == fleet, col(ProgressRow.device) == device
        )
    )
    rows = [
        {
            "fleet": fleet,
            "device": device,
            "model": item.model,
            "rollout": item.rollout,
            "phase": item.phase.value,
            "target": item.target,
            "active": item.active,
            "standby": item.standby,
            "generation": item.generation,
            "epoch": item.epoch,
            "changed_ms": item.changed_ms,
            "reason": item.reason.value if item.reason else None,
            "detail": item.detail,
        }
        for item in models
    ]
    if rows:
        session.connection().execute(sqlalchemy.insert(ProgressRow), rows)


def forget(session: Session, fleet: str, device: str) -> None:
    """Delete presence, progress and the marks up to which both were heard; refusals stay."""
    for table in (PresenceRow, ProgressRow, ReportedRow):
        session.connection().execute(
            sqlalchemy.delete(table).where(col(table.fleet) == fleet, col(table.device) == device)
        )


def refusals(session: Session, fleet: str, device: str, count: int) -> list[RefusalRow]:
    """The newest refusals of a device."""
    query = (
        select(RefusalRow)
        .where(RefusalRow.fleet == fleet, RefusalRow.device == device)
        .order_by(col(RefusalRow.received_ms).desc(), col(RefusalRow.at_ms).desc())
        .limit(count)
    )
    return list(session.exec(query))


def add_refusal(session: Session, **values: Any) -> bool:
    """Store a refusal; False if it was stored before."""
    key = tuple(values[name] for name in ("fleet", "device", "topic", "at_ms", "reason"))
    if session.get(RefusalRow, key) is not None:
        return False
    session.add(RefusalRow(**values))
    session.flush()
    return True


def forget_refusals(session: Session, fleet: str, device: str, keep: int) -> None:
    """Delete all but the newest refusals of a device."""
    query = (
        select(RefusalRow)
        .where(RefusalRow.fleet == fleet, RefusalRow.device == device)
        .order_by(col(RefusalRow.received_ms).desc(), col(RefusalRow.at_ms).desc())
        .offset(keep)
    )
    for row in session.exec(query):
        session.delete(row)

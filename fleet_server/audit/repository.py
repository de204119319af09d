"""Adds to the audit and reads it; there is nothing here that changes a record."""

from collections.abc import Iterator
from typing import Any

from sqlmodel import Session, col, select

from fleet_server.audit.tables import AuditHeadRow, AuditRow, CheckpointRow

Row = AuditRow
"""One record as it is kept; the table itself is this module's alone."""
Head = AuditHeadRow
Checkpoint = CheckpointRow
_HEAD = 1
PAGE = 1_000


def head(session: Session, *, lock: bool = False) -> AuditHeadRow:
    """The end of the chain; locked, nobody else can append before the transaction ends."""
    query = select(AuditHeadRow).where(col(AuditHeadRow.id) == _HEAD)
    return session.exec(query.with_for_update() if lock else query).one()


def append(session: Session, end: AuditHeadRow, **values: Any) -> None:
    """Add a record and move the head, which has to be locked."""
    session.add(AuditRow(**values))
    end.sequence, end.hash = values["sequence"], values["hash"]
    session.add(end)


def newest(session: Session, *, before: int | None, count: int) -> list[AuditRow]:
    """The newest records below a sequence number, the newest first."""
    query = select(AuditRow).order_by(col(AuditRow.sequence).desc()).limit(count)
    if before is not None:
        query = query.where(col(AuditRow.sequence) < before)
    return list(session.exec(query))


def of_release(session: Session, model: str, version: str, *, count: int) -> list[AuditRow]:
    """The oldest records about a release."""
    query = (
        select(AuditRow)
        .where(col(AuditRow.model_name) == model, col(AuditRow.model_version) == version)
        .order_by(col(AuditRow.sequence))
        .limit(count)
    )
    return list(session.exec(query))


def page(session: Session, *, after: int, count: int) -> list[AuditRow]:
    """Records above a sequence number, in order."""
    query = select(AuditRow).where(col(AuditRow.sequence) > after)
    return list(session.exec(query.order_by(col(AuditRow.sequence)).limit(count)))


def chain(session: Session) -> Iterator[AuditRow]:
    """Every record in order, a page in memory at a time."""
    rows = page(session, after=-1, count=PAGE)
    while rows:
        yield from rows
        after = rows[-1].sequence
        session.expunge_all()
        rows = page(session, after=after, count=PAGE)


def checkpoints(session: Session) -> list[CheckpointRow]:
    """All checkpoints, the oldest first."""
    return list(session.exec(select(CheckpointRow).order_by(col(CheckpointRow.sequence))))


def checkpoint(session: Session, sequence: int) -> CheckpointRow | None:
    """The checkpoint of this very record."""
    return session.get(CheckpointRow, sequence)


def keep_checkpoint(session: Session, **values: Any) -> CheckpointRow:
    """Keep a checkpoint, in the place of an older one of the same record."""
    row = session.merge(CheckpointRow(**values))
    session.flush()
    return row

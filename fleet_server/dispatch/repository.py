"""Reads and writes the tables of dispatch; decides nothing but how to do it in one statement.

One statement each, so that the row's lock is all that is needed on either database.
"""

from collections.abc import Mapping
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, and_, bindparam, case, func, or_
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col, select

from fleet_server.dispatch.tables import ControlMessageRow, FleetEpochRow


def _insert(session: Session, table: type[Any]) -> Any:
    """Return the dialect's INSERT, which is the one that knows ON CONFLICT."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def advance_epoch(session: Session, fleet: str, now_ms: int) -> int:
    """Raise the fleet's epoch to max(last + 1, now_ms) and return it; locks the fleet's row."""
    following = col(FleetEpochRow.epoch) + 1
    statement = (
        _insert(session, FleetEpochRow)
        .values(fleet=fleet, epoch=now_ms)
        .on_conflict_do_update(
            index_elements=["fleet"],
            set_={"epoch": case((following > now_ms, following), else_=now_ms)},
        )
        .returning(FleetEpochRow.epoch)
    )
    epoch: int = session.connection().execute(statement).scalar_one()
    return epoch


def put_control(
    session: Session, *, fleet: str, topic: str, epoch: int, payload: bytes, now_ms: int
) -> bool:
    """Write a control message unless a newer or a different one of this epoch is there.

    Returns:
        False if it was not written.
    """
    insert = _insert(session, ControlMessageRow)
    newer: ColumnElement[bool] = or_(
        col(ControlMessageRow.epoch) < epoch,
        and_(col(ControlMessageRow.epoch) == epoch, col(ControlMessageRow.payload) == payload),
    )
    statement = (
        insert.values(topic=topic, fleet=fleet, epoch=epoch, payload=payload, written_ms=now_ms)
        .on_conflict_do_update(
            index_elements=["topic"],
            set_={"epoch": epoch, "payload": payload, "written_ms": now_ms},
            where=newer,
        )
        .returning(ControlMessageRow.topic)
    )
    return session.connection().execute(statement).first() is not None


def payload_of(session: Session, topic: str) -> bytes | None:
    """Return what the broker must hold under a topic, None for nothing."""
    query = select(ControlMessageRow.payload).where(ControlMessageRow.topic == topic)
    return session.exec(query).first()


def control_messages(
    session: Session, fleet: str, after_epoch: int | None
) -> list[tuple[str, int, bytes]]:
    """Return (topic, epoch, payload) of the fleet's rows, or of those above ``after_epoch``."""
    query = select(ControlMessageRow.topic, ControlMessageRow.epoch, ControlMessageRow.payload)
    query = query.where(ControlMessageRow.fleet == fleet)
    if after_epoch is not None:
        query = query.where(ControlMessageRow.epoch > after_epoch)
    return [(topic, epoch, payload) for topic, epoch, payload in session.exec(query)]


def count_control(session: Session, fleet: str) -> int:
    """Return how many rows a fleet has."""
    query = select(func.count()).where(ControlMessageRow.fleet == fleet)
    return session.exec(query).one()


def control_epochs(session: Session, fleet: str, prefix: str) -> dict[str, int]:
    """Return topic → epoch of the fleet's rows whose topic starts with ``prefix``."""
    query = select(ControlMessageRow.topic, ControlMessageRow.epoch).where(
        ControlMessageRow.fleet == fleet,
        col(ControlMessageRow.topic).startswith(prefix, autoescape=True),
    )
    return dict(session.exec(query).all())


def control_page(session: Session, fleet: str, after: str, count: int) -> list[tuple[str, bytes]]:
    """Return (topic, payload) of at most ``count`` rows whose topics come after ``after``."""
    query = (
        select(ControlMessageRow.topic, ControlMessageRow.payload)
        .where(ControlMessageRow.fleet == fleet, col(ControlMessageRow.topic) > after)
        .order_by(col(ControlMessageRow.topic))
        .limit(count)
    )
    return [(topic, payload) for topic, payload in session.exec(query)]


def replace_control(
    session: Session, payloads: Mapping[str, bytes], *, epoch: int, now_ms: int
) -> None:
    """Write topic → payload over rows that are there. Nobody else may have drawn this epoch."""
    if not payloads:
        return
    statement = (
        sqlalchemy.update(ControlMessageRow)
        .where(col(ControlMessageRow.topic) == bindparam("of_topic"))
        .values(payload=bindparam("to_payload"), epoch=epoch, written_ms=now_ms)
    )
    session.connection().execute(
        statement,
        [{"of_topic": topic, "to_payload": payload} for topic, payload in payloads.items()],
    )

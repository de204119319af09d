"""Reads and writes the window table; decides how, in bulk, and that the highest sequence wins."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, TypedDict

import sqlalchemy
from sqlalchemy import func
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col, select

from fleet_server.telemetry.tables import WindowRow

_KEY = ("fleet", "device", "session", "model", "release", "role", "start_ms")
_STATE = ("sequence", "length_ms", "closed", "predictions", "errors", "updated_ms", "body")


class WindowValues(TypedDict):
    """A row to write, column → value."""

    fleet: str
    device: str
    session: str
    model: str
    release: str
    role: str
    start_ms: int
    sequence: int
    length_ms: int
    closed: bool
    predictions: int
    errors: int
    received_ms: int
    updated_ms: int
    body: bytes


class WindowBody(NamedTuple):
    """What is read back of a row."""

    device: str
    session: str
    model: str
    received_ms: int
    updated_ms: int
    body: bytes


_BODIES = sqlalchemy.select(
    col(WindowRow.device),
    col(WindowRow.session),
    col(WindowRow.model),
    col(WindowRow.received_ms),
    col(WindowRow.updated_ms),
    col(WindowRow.body),
)


def put_windows(session: Session, rows: Sequence[WindowValues]) -> None:
    """Insert windows, or update those with a lower sequence; no window may be in ``rows`` twice."""
    if not rows:
        return
    # The two dialects spell ON CONFLICT alike, but share no type that says so.
    postgres = session.get_bind().dialect.name == "postgresql"
    insert: Any = postgresql.insert(WindowRow) if postgres else sqlite.insert(WindowRow)
    statement = insert.on_conflict_do_update(
        index_elements=_KEY,
        set_={name: insert.excluded[name] for name in _STATE},
        where=insert.excluded.sequence > col(WindowRow.sequence),
    )
    session.connection().execute(statement, [dict(row) for row in rows])


def windows(
    session: Session,
    fleet: str,
    model: str,
    *,
    since_ms: int | None,
    devices: Collection[str] | None,
) -> list[WindowBody]:
    """Return a model's windows in order of device and start."""
    query = _BODIES.where(col(WindowRow.fleet) == fleet, col(WindowRow.model) == model)
    if since_ms is not None:
        query = query.where(col(WindowRow.received_ms) >= since_ms)
    query = query.order_by(
        col(WindowRow.device),
        col(WindowRow.start_ms),
        col(WindowRow.session),
        col(WindowRow.release),
        col(WindowRow.role),
    )
    rows = [WindowBody(*row) for row in session.connection().execute(query)]
    # Filtered here: a list of thousands of names is more than one statement may carry.
    wanted = None if devices is None else frozenset(devices)
    return [row for row in rows if wanted is None or row.device in wanted]


def newest_windows(
    session: Session, fleet: str, device: str, model: str | None, count: int
) -> list[WindowBody]:
    """Return a device's newest windows by their start, the newest first."""
    query = _BODIES.where(col(WindowRow.fleet) == fleet, col(WindowRow.device) == device)
    if model is not None:
        query = query.where(col(WindowRow.model) == model)
    query = query.order_by(col(WindowRow.start_ms).desc()).limit(count)
    return [WindowBody(*row) for row in session.connection().execute(query)]


def last_update_ms(session: Session, fleet: str, model: str) -> dict[str, int]:
    """Return device → server time of the last message that brought something new."""
    newest = func.max(col(WindowRow.updated_ms))
    query = (
        select(WindowRow.device, newest)
        .where(WindowRow.fleet == fleet, WindowRow.model == model)
        .group_by(col(WindowRow.device))
    )
    return {device: int(updated_ms) for device, updated_ms in session.exec(query)}

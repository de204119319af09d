"""Reads and writes what devices have seen, and who speaks without being known."""

from collections.abc import Collection, Iterator
from typing import Any

import sqlalchemy
from sqlmodel import Session, col, select

from fleet_server.devices.tables import SeenRow, StrangerRow

PAGE = 1_000

SeenRecord = SeenRow
"""What one device has seen, as it is written; the table itself is the repositories' alone."""


def seen(session: Session, fleet: str, devices: Collection[str]) -> dict[str, SeenRow]:
    """Device → what it has seen, of these devices."""
    query = select(SeenRow).where(SeenRow.fleet == fleet, col(SeenRow.device).in_(list(devices)))
    return {row.device: row for row in session.exec(query)}


def reported_since(session: Session, fleet: str, since_ms: int) -> Iterator[SeenRow]:
    """Yield what devices have said they have seen, of those that spoke since a time."""
    after = ""
    while True:
        query = (
            select(SeenRow)
            .where(SeenRow.fleet == fleet, col(SeenRow.device) > after)
            .where(col(SeenRow.reported_ms) >= since_ms)
            .order_by(col(SeenRow.device))
            .limit(PAGE)
        )
        rows = list(session.exec(query))
        yield from rows
        if len(rows) < PAGE:
            return
        after = rows[-1].device


def add_seen(session: Session, **values: Any) -> SeenRow:
    """Store what a device has seen for the first time."""
    row = SeenRow(**values)
    session.add(row)
    return row


def strangers(session: Session, fleet: str, count: int, after: str = "") -> list[StrangerRow]:
    """Those who speak and are not known, in order of their names."""
    query = (
        select(StrangerRow)
        .where(StrangerRow.fleet == fleet, col(StrangerRow.name) > after)
        .order_by(col(StrangerRow.name))
        .limit(count)
    )
    return list(session.exec(query))


def count_strangers(session: Session, fleet: str) -> int:
    """How many speak and are not known."""
    query = select(sqlalchemy.func.count()).where(StrangerRow.fleet == fleet)
    return int(session.exec(query).one())


def stranger(session: Session, fleet: str, name: str) -> StrangerRow | None:
    """One of them."""
    return session.get(StrangerRow, (fleet, name))


def add_stranger(session: Session, **values: Any) -> StrangerRow:
    """Store somebody who is not known."""
    row = StrangerRow(**values)
    session.add(row)
    return row


def forget_stranger(session: Session, row: StrangerRow) -> None:
    """Delete somebody who is known now."""
    session.delete(row)
    session.flush()

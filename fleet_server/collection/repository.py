"""Reads and writes the table of garbage; decides how, not when."""

from collections.abc import Collection

from sqlalchemy import delete
from sqlmodel import Session, col, select

from fleet_server.collection.tables import GarbageRow

Row = GarbageRow
"""One file as it is written; the table itself is this module's alone."""
_AT_ONCE = 500


def marks(session: Session) -> dict[str, GarbageRow]:
    """Return what is marked, by path."""
    return {row.path: row for row in session.exec(select(GarbageRow))}


def mark(session: Session, path: str, size_bytes: int, now_ms: int) -> None:
    """Mark a file as needed by nobody from now on, also if it was marked before."""
    session.merge(GarbageRow(path=path, size_bytes=size_bytes, marked_ms=now_ms))


def forget(session: Session, paths: Collection[str]) -> None:
    """Take marks away."""
    listed = sorted(paths)
    for start in range(0, len(listed), _AT_ONCE):
        part = listed[start : start + _AT_ONCE]
        session.connection().execute(delete(GarbageRow).where(col(GarbageRow.path).in_(part)))

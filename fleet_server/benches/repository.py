"""Reads and writes the table of bench devices; decides how, not when."""

from sqlmodel import Session, col, select

from fleet_server.benches.tables import BenchRow

Row = BenchRow
"""One bench device as it is written; the table itself is this module's alone."""


def lock(session: Session, fleet: str, device: str) -> BenchRow | None:
    """Return a bench device for a change, None if it never was one."""
    query = select(BenchRow).where(BenchRow.fleet == fleet, BenchRow.device == device)
    return session.exec(query.with_for_update()).first()


def everything(session: Session, fleet: str) -> list[BenchRow]:
    """Return all bench devices, in order of their names."""
    query = select(BenchRow).where(BenchRow.fleet == fleet).order_by(col(BenchRow.device))
    return list(session.exec(query))


def save(session: Session, row: BenchRow) -> None:
    """Write a bench device."""
    session.add(row)
    session.flush()

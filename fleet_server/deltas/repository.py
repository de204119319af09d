"""Reads and writes the table of patches; decides how, not when."""

from sqlmodel import Session, col, select

from fleet_server.deltas.tables import DeltaRow

Row = DeltaRow
"""One patch as it is written; the table itself is this module's alone."""


def find(session: Session, old_digest: str, new_digest: str) -> DeltaRow | None:
    """Return what became of a patch, None if it was not tried."""
    return session.get(DeltaRow, (old_digest, new_digest))


def everything(session: Session) -> list[DeltaRow]:
    """Return all patches; the plan keeps them few."""
    return list(session.exec(select(DeltaRow)))


def of_release(session: Session, model: str, version: str) -> list[DeltaRow]:
    """Return the patches that lead to a release, the smallest first."""
    query = select(DeltaRow).where(DeltaRow.model == model, DeltaRow.new_version == version)
    return list(session.exec(query.order_by(col(DeltaRow.state), col(DeltaRow.patch_bytes))))


def save(session: Session, row: DeltaRow) -> None:
    """Write a patch in place of what was written about it before."""
    session.merge(row)
    session.flush()


def remove(session: Session, old_digest: str, new_digest: str) -> None:
    """Forget a patch."""
    row = find(session, old_digest, new_digest)
    if row is not None:
        session.delete(row)
        session.flush()

"""Reads and writes the release table; decides how, not when."""

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, func, select

from fleet_server.releases.states import ReleaseState, Stage
from fleet_server.releases.tables import ReleaseRow

Row = ReleaseRow
"""One release as it is written; the table itself is this module's alone."""


def find(session: Session, model: str, version: str) -> ReleaseRow | None:
    """Return the release, or None."""
    return session.get(ReleaseRow, (model, version))


def lock(session: Session, model: str, version: str) -> ReleaseRow | None:
    """Return the release and keep other writers from it until the transaction ends."""
    return session.get(ReleaseRow, (model, version), with_for_update=True)


def find_digest(session: Session, digest: str) -> ReleaseRow | None:
    """Return the release with this manifest digest."""
    return session.exec(select(ReleaseRow).where(ReleaseRow.digest == digest)).first()


def of_model(session: Session, model: str) -> list[ReleaseRow]:
    """Return the releases of a model, the newest first."""
    query = select(ReleaseRow).where(ReleaseRow.model == model)
    return list(session.exec(query.order_by(col(ReleaseRow.counter).desc())))


def everything(session: Session) -> list[ReleaseRow]:
    """Return all releases in the order of model and counter."""
    query = select(ReleaseRow).order_by(col(ReleaseRow.model), col(ReleaseRow.counter))
    return list(session.exec(query))


def in_state(session: Session, state: ReleaseState) -> list[ReleaseRow]:
    """Return the releases in a state, in the order in which they came."""
    query = select(ReleaseRow).where(ReleaseRow.state == state.value)
    return list(session.exec(query.order_by(col(ReleaseRow.received_ms))))


def newest_sealed(session: Session, model: str) -> ReleaseRow | None:
    """Return the release of a model with the highest counter that has a manifest."""
    query = select(ReleaseRow).where(
        ReleaseRow.model == model, col(ReleaseRow.manifest).is_not(None)
    )
    return session.exec(query.order_by(col(ReleaseRow.counter).desc()).limit(1)).first()


def newest_staged(session: Session, model: str) -> ReleaseRow | None:
    """Return the release of a model with the highest counter that may be rolled out."""
    query = select(ReleaseRow).where(
        ReleaseRow.model == model, ReleaseRow.state == ReleaseState.STAGED.value
    )
    return session.exec(query.order_by(col(ReleaseRow.counter).desc()).limit(1)).first()


def staged_models(session: Session) -> list[str]:
    """Return the models that have a staged release."""
    query = select(ReleaseRow.model).where(ReleaseRow.state == ReleaseState.STAGED.value)
    return sorted(session.exec(query.distinct()))


def newest_staged_digests(session: Session, model: str, count: int) -> list[str]:
    """Return the manifest digests of the newest staged releases of a model, the newest first."""
    query = (
        select(ReleaseRow.digest)
        .where(ReleaseRow.model == model, ReleaseRow.state == ReleaseState.STAGED.value)
        .order_by(col(ReleaseRow.counter).desc())
        .limit(count)
    )
    return [digest for digest in session.exec(query) if digest is not None]


def production_digests(session: Session, model: str, count: int) -> list[str]:
    """Return the manifest digests of a model's releases in production, the last promoted first."""
    query = (
        select(ReleaseRow.digest)
        .where(
            ReleaseRow.model == model,
            ReleaseRow.state == ReleaseState.STAGED.value,
            ReleaseRow.stage == Stage.PRODUCTION.value,
        )
        .order_by(col(ReleaseRow.promoted_ms).desc(), col(ReleaseRow.counter).desc())
        .limit(count)
    )
    return [digest for digest in session.exec(query) if digest is not None]


def highest_counter(session: Session, model: str) -> int:
    """Return the highest counter ever given to a release of this model, 0 if there is none."""
    query = select(func.max(ReleaseRow.counter)).where(ReleaseRow.model == model)
    return session.exec(query).one() or 0


def save(session: Session, row: ReleaseRow) -> None:
    """Write a new or a changed release."""
    session.add(row)
    session.flush()


def add(session: Session, row: ReleaseRow) -> bool:
    """Write a new release; say whether nobody wrote one with its version or counter meanwhile."""
    try:
        save(session, row)
    except IntegrityError:
        session.rollback()
        return False
    return True


def remove(session: Session, model: str, version: str) -> None:
    """Remove a release, if there is one."""
    row = lock(session, model, version)
    if row is not None:
        session.delete(row)
        session.flush()

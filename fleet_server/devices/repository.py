"""Reads and writes the tables of the devices' identity: devices, tokens, cohorts and the stop.

What devices say of themselves is in :mod:`fleet_server.devices.state_repository`.
"""

from collections.abc import Collection
from typing import Any

import sqlalchemy
from sqlmodel import Session, col, select

from fleet_server.devices.tables import CohortRow, DeviceRow, EnrolmentTokenRow, StopRow


def device(session: Session, fleet: str, name: str) -> DeviceRow | None:
    """One device."""
    return session.get(DeviceRow, (fleet, name))


def devices(session: Session, fleet: str, cohort: str | None = None) -> list[DeviceRow]:
    """The fleet's devices, or a cohort's, in order of their names, without the retired ones."""
    query = select(DeviceRow).where(DeviceRow.fleet == fleet, col(DeviceRow.retired_ms).is_(None))
    query = query.order_by(col(DeviceRow.name))
    if cohort is not None:
        query = query.where(DeviceRow.cohort == cohort)
    return list(session.exec(query))


def device_page(
    session: Session, fleet: str, *, cohort: str | None, after: str, count: int
) -> list[DeviceRow]:
    """Devices whose name is above ``after``."""
    query = (
        select(DeviceRow)
        .where(DeviceRow.fleet == fleet, col(DeviceRow.name) > after)
        .order_by(col(DeviceRow.name))
        .limit(count)
    )
    if cohort is not None:
        query = query.where(DeviceRow.cohort == cohort)
    return list(session.exec(query))


def known(session: Session, fleet: str, names: Collection[str]) -> set[str]:
    """Those of the names that are enrolled and not retired."""
    query = select(DeviceRow.name).where(
        DeviceRow.fleet == fleet,
        col(DeviceRow.name).in_(list(names)),
        col(DeviceRow.retired_ms).is_(None),
    )
    return set(session.exec(query))


def lock_fleet(session: Session, fleet: str) -> None:
    """Let one transaction at a time decide who is in which cohort; needs the stop's row."""
    session.exec(select(StopRow).where(StopRow.fleet == fleet).with_for_update()).first()


def add_device(session: Session, **values: Any) -> None:
    """Store a new device."""
    session.add(DeviceRow(**values))
    session.flush()


def save(session: Session, row: DeviceRow) -> None:
    """Write a changed device."""
    session.add(row)
    session.flush()


def add_token(session: Session, **values: Any) -> None:
    """Store an enrolment token."""
    session.add(EnrolmentTokenRow(**values))
    session.flush()


def token(session: Session, secret_hash: str) -> EnrolmentTokenRow | None:
    """The token whose secret has this hash."""
    return session.get(EnrolmentTokenRow, secret_hash)


def spend_token(session: Session, secret_hash: str) -> bool:
    """Use a token once. False if it is used up: the row decides, not a look at it before."""
    statement = (
        sqlalchemy.update(EnrolmentTokenRow)
        .where(
            col(EnrolmentTokenRow.secret_hash) == secret_hash,
            col(EnrolmentTokenRow.used) < col(EnrolmentTokenRow.count),
            col(EnrolmentTokenRow.revoked_ms).is_(None),
        )
        .values(used=col(EnrolmentTokenRow.used) + 1)
        .returning(col(EnrolmentTokenRow.secret_hash))
    )
    return session.connection().execute(statement).first() is not None


def tokens(session: Session, fleet: str, count: int) -> list[EnrolmentTokenRow]:
    """The newest tokens, whatever became of them."""
    query = select(EnrolmentTokenRow).where(EnrolmentTokenRow.fleet == fleet)
    query = query.order_by(col(EnrolmentTokenRow.created_ms).desc(), col(EnrolmentTokenRow.id))
    return list(session.exec(query.limit(count)))


def token_named(session: Session, fleet: str, identifier: str) -> EnrolmentTokenRow | None:
    """The token with this id."""
    query = select(EnrolmentTokenRow).where(
        EnrolmentTokenRow.fleet == fleet, EnrolmentTokenRow.id == identifier
    )
    return session.exec(query).first()


def revoke_token(session: Session, row: EnrolmentTokenRow, now_ms: int) -> None:
    """Make a token worthless."""
    row.revoked_ms = now_ms
    session.add(row)
    session.flush()


def cohorts(session: Session, fleet: str) -> list[CohortRow]:
    """The fleet's cohorts, the one that is asked first first."""
    query = (
        select(CohortRow)
        .where(CohortRow.fleet == fleet)
        .order_by(col(CohortRow.priority).desc(), col(CohortRow.name))
    )
    return list(session.exec(query))


def add_cohort(session: Session, **values: Any) -> None:
    """Store a cohort."""
    session.add(CohortRow(**values))
    session.flush()


def counts(session: Session, fleet: str) -> dict[str, int]:
    """Cohort → number of devices in it, without those that hold nobody."""
    query = (
        select(DeviceRow.cohort, sqlalchemy.func.count())
        .where(DeviceRow.fleet == fleet, col(DeviceRow.retired_ms).is_(None))
        .group_by(col(DeviceRow.cohort))
    )
    return {cohort: int(count) for cohort, count in session.exec(query)}


def stop(session: Session, fleet: str) -> StopRow | None:
    """The fleet's stop; None before the server's first start."""
    return session.get(StopRow, fleet)


def put_stop(session: Session, **values: Any) -> None:
    """Write the fleet's stop."""
    session.merge(StopRow(**values))
    session.flush()

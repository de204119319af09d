"""Reads and writes the tokens."""

from typing import Any

from sqlmodel import Session, col, select

from fleet_server.access.tables import ApiTokenRow

__all__ = ["ApiTokenRow"]


def by_hash(session: Session, token_hash: str) -> ApiTokenRow | None:
    """The token with this hash, whether or not it is still valid."""
    return session.get(ApiTokenRow, token_hash)


def by_id(session: Session, token: str, *, lock: bool = False) -> ApiTokenRow | None:
    """The token that people call by this id."""
    query = select(ApiTokenRow).where(col(ApiTokenRow.id) == token)
    return session.exec(query.with_for_update() if lock else query).first()


def everything(session: Session) -> list[ApiTokenRow]:
    """All tokens, the newest first."""
    query = select(ApiTokenRow).order_by(
        col(ApiTokenRow.created_ms).desc(), col(ApiTokenRow.token_hash)
    )
    return list(session.exec(query))


def has_tokens(session: Session) -> bool:
    """Whether any token was ever made."""
    return session.exec(select(ApiTokenRow).limit(1)).first() is not None


def add(session: Session, **values: Any) -> ApiTokenRow:
    """Store a token by its hash."""
    row = ApiTokenRow(**values)
    session.add(row)
    session.flush()
    return row


def save(session: Session, row: ApiTokenRow) -> None:
    """Write a changed token."""
    session.add(row)
    session.flush()

"""Reads and writes the tokens."""

from sqlmodel import Session, select

from fleet_server.access.tables import ApiTokenRow


def user_of(session: Session, token_hash: str) -> str | None:
    """The user whose token has this hash."""
    row = session.get(ApiTokenRow, token_hash)
    return None if row is None else row.user


def has_tokens(session: Session) -> bool:
    """Whether any token was ever made."""
    return session.exec(select(ApiTokenRow).limit(1)).first() is not None


def add(session: Session, *, token_hash: str, user: str, now_ms: int) -> None:
    """Store a token by its hash."""
    session.add(ApiTokenRow(token_hash=token_hash, user=user, created_ms=now_ms))
    session.flush()

"""Reads and writes the certificates that were issued to devices."""

from typing import Any

import sqlalchemy
from sqlmodel import Session, col, select

from fleet_server.devices.tables import CertificateRow

__all__ = ["CertificateRow"]


def add(session: Session, **values: Any) -> None:
    """Write down a certificate that was just issued."""
    session.add(CertificateRow(**values))
    session.flush()


def by_fingerprint(session: Session, fingerprint: str) -> CertificateRow | None:
    """One certificate."""
    return session.get(CertificateRow, fingerprint)


def has_key(session: Session, fleet: str, device: str, key_hash: str) -> bool:
    """Whether a device was given a certificate for this key, that was not revoked."""
    query = select(CertificateRow.fingerprint).where(
        CertificateRow.fleet == fleet,
        CertificateRow.device == device,
        CertificateRow.key_hash == key_hash,
        col(CertificateRow.revoked_ms).is_(None),
    )
    return session.exec(query).first() is not None


def has_key_of_token(
    session: Session, fleet: str, device: str, token_hash: str, key_hash: str
) -> bool:
    """Whether a device was given a certificate for this key by this token, not revoked since."""
    query = select(CertificateRow.fingerprint).where(
        CertificateRow.fleet == fleet,
        CertificateRow.device == device,
        CertificateRow.token_hash == token_hash,
        CertificateRow.key_hash == key_hash,
        col(CertificateRow.revoked_ms).is_(None),
    )
    return session.exec(query).first() is not None


def issued_by_others(session: Session, fleet: str, issuer: str) -> list[str]:
    """Devices, in order of their names, that hold a certificate which another authority has issued:
    one that was neither renewed nor revoked."""
    query = (
        select(CertificateRow.device)
        .where(
            CertificateRow.fleet == fleet,
            CertificateRow.issuer != issuer,
            col(CertificateRow.superseded_ms).is_(None),
            col(CertificateRow.revoked_ms).is_(None),
        )
        .distinct()
        .order_by(CertificateRow.device)
    )
    return list(session.exec(query))


def supersede(session: Session, row: CertificateRow, now_ms: int) -> None:
    """Write down that a certificate was renewed."""
    row.superseded_ms = now_ms
    session.add(row)
    session.flush()


def revoke_all(session: Session, fleet: str, device: str, now_ms: int) -> int:
    """Revoke whatever a device holds; returns how many certificates that were."""
    statement = (
        sqlalchemy.update(CertificateRow)
        .where(
            col(CertificateRow.fleet) == fleet,
            col(CertificateRow.device) == device,
            col(CertificateRow.revoked_ms).is_(None),
        )
        .values(revoked_ms=now_ms)
        .returning(col(CertificateRow.fingerprint))
    )
    return len(session.connection().execute(statement).all())


def revoked(session: Session, fleet: str, now_ms: int) -> dict[str, list[str]]:
    """Authority → serial numbers of what it issued and was revoked before it expired."""
    query = select(CertificateRow.issuer, CertificateRow.serial).where(
        CertificateRow.fleet == fleet,
        col(CertificateRow.revoked_ms).is_not(None),
        col(CertificateRow.not_after_ms) > now_ms,
    )
    found: dict[str, list[str]] = {}
    for issuer, serial in session.exec(query):
        found.setdefault(issuer, []).append(serial)
    return found

"""Which certificates are believed, how they are renewed, and when they end.

Decides that a certificate counts because it is written down here, not because an authority signed
it: so a stolen authority mints nothing that opens the door. An expired certificate that is not
revoked may renew and nothing else. Each renews once: a second renewal with another key says that
two devices hold the same identity.
"""

from dataclasses import dataclass

from sqlmodel import Session

from fleet_contract.errors import InvalidName
from fleet_contract.names import check_identity
from fleet_server.audit import service as audit
from fleet_server.devices import certificate_repository, repository
from fleet_server.devices.certificate_repository import CertificateRow
from fleet_server.errors import Conflict, Unauthorized
from fleet_server.trust.authority.authority import Authority
from fleet_server.trust.authority.certificates import HOUR_MS, Issued, key_hash, read_request

CLONED = "cloned_identity"
"""The alarm of a device that seems to be there twice."""
_ADVICE = "An operator replaces the device: edgefleet device replace NAME."
_RENEWS = "The agent renews it by itself: POST /v1/devices/renew."


@dataclass(frozen=True, slots=True)
class Renewed:
    """A new certificate of a device. ``alarm`` says why there is none after all."""

    device: str
    pem: bytes
    alarm: str = ""


def issue(
    session: Session,
    authority: Authority,
    *,
    fleet: str,
    device: str,
    csr: str,
    lifetime_hours: int,
    token_hash: str = "",
) -> Issued:
    """Issue a certificate for a request, and write it down.

    Raises:
        Invalid: if the request is not one for this device.
    """
    public_key = read_request(csr, device)
    issued = authority.issue(public_key, device, lifetime_ms=lifetime_hours * HOUR_MS)
    _write_down(session, fleet, device, issued, token_hash)
    return issued


def holder(
    session: Session, authority: Authority, fleet: str, fingerprint: str, *, now_ms: int
) -> str:
    """Return the name of the device that holds a certificate.

    Raises:
        Unauthorized: if the certificate is not written down here, was revoked, has expired, or
            comes from an authority that is no longer believed.
    """
    row = _not_revoked(session, fleet, fingerprint)
    if now_ms >= row.not_after_ms:
        raise Unauthorized(
            "expired_certificate",
            "This certificate has expired; all that it is good for is a new one.",
            _RENEWS,
        )
    if not authority.believes(row.issuer):
        raise Unauthorized(
            "former_authority",
            "The authority that issued this certificate was replaced; all that it is good for is "
            "a new one.",
            _RENEWS,
        )
    return row.device


def recall(session: Session, authority: Authority, fleet: str, der: bytes, now_ms: int) -> bool:
    """Write down a certificate that was issued between the backup and the restore from it.

    Returns:
        Whether it was one, and was not written down yet; then the caller commits.
    """
    issued = authority.forgotten(der)
    if issued is None or certificate_repository.by_fingerprint(session, issued.fingerprint):
        return False
    try:
        check_identity(issued.name, "device")
    except InvalidName:
        return False
    _write_down(session, fleet, issued.name, issued)
    audit.record(
        session,
        action="device.recall",
        resource_type="device",
        resource_name=issued.name,
        outcome="done",
        user="server",
        correlation_id="",
        detail={"certificate": issued.fingerprint, "issued_ms": issued.issued_ms},
        now_ms=now_ms,
    )
    return True


def renew(
    session: Session,
    authority: Authority,
    *,
    fleet: str,
    fingerprint: str,
    csr: str,
    lifetime_hours: int,
    now_ms: int,
) -> Renewed:
    """Issue a device's next certificate.

    The same request again is answered again: an answer may get lost. If the certificate shown was
    renewed before with another key, nothing is issued and the alarm is raised; the caller commits.

    Raises:
        Unauthorized: if the certificate is not written down here, or was revoked.
        Invalid: if the request is not one for this device.
    """
    shown = _not_revoked(session, fleet, fingerprint)
    device = shown.device
    asked = key_hash(read_request(csr, device))
    if shown.superseded_ms is not None and not certificate_repository.has_key(
        session, fleet, device, asked
    ):
        raise_alarm(session, fleet, device, CLONED, now_ms)
        return Renewed(device, b"", CLONED)
    issued = issue(
        session, authority, fleet=fleet, device=device, csr=csr, lifetime_hours=lifetime_hours
    )
    if shown.superseded_ms is None:
        certificate_repository.supersede(session, shown, now_ms)
    return Renewed(device, issued.pem)


def raise_alarm(session: Session, fleet: str, device: str, alarm: str, now_ms: int) -> bool:
    """Mark a device. Returns False if it was marked before."""
    row = repository.device(session, fleet, device)
    if row is None or row.alarm == alarm:
        return False
    row.alarm, row.alarm_ms = alarm, now_ms
    repository.save(session, row)
    return True


def refuse_clone(device: str) -> Conflict:
    """Return the answer to a device that seems to be there twice."""
    return Conflict(
        CLONED,
        f"The identity of {device} was renewed before, with another key: two devices hold it.",
        _ADVICE,
    )


def _write_down(
    session: Session, fleet: str, device: str, issued: Issued, token_hash: str = ""
) -> None:
    certificate_repository.add(
        session,
        fingerprint=issued.fingerprint,
        fleet=fleet,
        device=device,
        serial=issued.serial,
        key_hash=issued.key_hash,
        issuer=issued.issuer,
        token_hash=token_hash,
        issued_ms=issued.issued_ms,
        not_after_ms=issued.not_after_ms,
    )


def _not_revoked(session: Session, fleet: str, fingerprint: str) -> CertificateRow:
    row = certificate_repository.by_fingerprint(session, fingerprint)
    if row is None or row.fleet != fleet:
        raise Unauthorized("unknown_certificate", "This certificate is not known here.", _ADVICE)
    if row.revoked_ms is not None:
        raise Unauthorized("revoked_certificate", "This certificate was revoked.", _ADVICE)
    return row

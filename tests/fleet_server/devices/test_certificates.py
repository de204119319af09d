"""Guards from certificates that are believed without being known, too late, or twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet_server.broker.rules import SERVER_IDENTITIES
from fleet_server.database import Database
from fleet_server.devices import certificates, leaving, service
from fleet_server.devices.certificates import CLONED, Renewed
from fleet_server.devices.enrolment import Enrolled
from fleet_server.errors import Conflict, Unauthorized
from fleet_server.trust.authority import gaps
from fleet_server.trust.authority.authority import Authority, open_authority
from fleet_server.trust.authority.certificates import DAY_MS, HOUR_MS, Issued
from fleet_server.trust.authority.standing import Line
from tests.fleet_server.device_key import DeviceKey


@dataclass
class Desk:
    """Issues, looks up and renews, each in a transaction of its own."""

    fleet: Database
    authority: Authority
    clock: Any

    def issue(self, name: str = "dev-1", key: DeviceKey | None = None) -> Issued:
        with self.fleet.transaction() as session:
            return certificates.issue(
                session,
                self.authority,
                fleet="home",
                device=name,
                csr=(key or DeviceKey()).csr(name),
                lifetime_hours=24,
            )

    def holder(self, issued: Issued, fleet: str = "home") -> str:
        with self.fleet.reading() as session:
            return certificates.holder(
                session,
                self.authority,
                fleet,
                issued.fingerprint,
                now_ms=self.clock.now_ms(),
            )

    def renew(self, issued: Issued, key: DeviceKey, name: str = "dev-1") -> Renewed:
        with self.fleet.transaction() as session:
            return certificates.renew(
                session,
                self.authority,
                fleet="home",
                fingerprint=issued.fingerprint,
                csr=key.csr(name),
                lifetime_hours=24,
                now_ms=self.clock.now_ms(),
            )

    def refused(self, issued: Issued, fleet: str = "home") -> str:
        with pytest.raises(Unauthorized) as refused:
            self.holder(issued, fleet)
        return refused.value.code


def reopened(folder: Path, clock: Any) -> Authority:
    return open_authority(
        folder,
        fleet="home",
        hosts=["127.0.0.1", "localhost"],
        identities=SERVER_IDENTITIES,
        may_make=False,
        random_bytes=clock.random_bytes,
        now_ms=clock.now_ms,
    )


@pytest.fixture
def desk(fleet: Database, authority: Authority, clock: Any, enrol: Callable[..., Enrolled]) -> Desk:
    enrol("dev-1")
    return Desk(fleet, authority, clock)


def alarm_of(fleet: Database) -> str | None:
    with fleet.reading() as session:
        return service.device(session, "home", "dev-1").alarm


def test_stolen_authority_mints_what_opens_the_door(desk: Desk) -> None:
    minted = desk.authority.issue(DeviceKey().key.public_key(), "dev-1", lifetime_ms=HOUR_MS)
    assert desk.refused(minted) == "unknown_certificate"
    with pytest.raises(Unauthorized):
        desk.renew(minted, DeviceKey())


def test_certificate_of_another_fleet(desk: Desk) -> None:
    issued = desk.issue()
    assert desk.holder(issued) == "dev-1"
    assert desk.refused(issued, "other") == "unknown_certificate"


def test_expired_certificate_that_does_more_than_renew(desk: Desk) -> None:
    issued = desk.issue()
    desk.clock.wall_ms += DAY_MS
    assert desk.refused(issued) == "expired_certificate"
    renewed = desk.renew(issued, DeviceKey())
    assert renewed.alarm == "" and renewed.pem.startswith(b"-----BEGIN CERTIFICATE")


def test_certificate_of_a_former_authority_does_more_than_renew(desk: Desk) -> None:
    issued = desk.issue()
    desk.authority.rotate(Line.DEVICE)
    assert desk.holder(issued) == "dev-1"
    desk.authority.finish(Line.DEVICE)
    assert desk.refused(issued) == "former_authority"
    assert desk.renew(issued, DeviceKey()).alarm == ""


def test_revoked_certificate_renews(desk: Desk) -> None:
    issued = desk.issue()
    with desk.fleet.transaction() as session:
        leaving.retire(session, "home", "dev-1", now_ms=desk.clock.now_ms())
    assert desk.refused(issued) == "revoked_certificate"
    with pytest.raises(Unauthorized) as refused:
        desk.renew(issued, DeviceKey())
    assert refused.value.code == "revoked_certificate"


def test_answer_to_a_renewal_that_got_lost(desk: Desk) -> None:
    first, key = desk.issue(), DeviceKey()
    assert desk.renew(first, key).alarm == ""
    again = desk.renew(first, key)
    assert again.alarm == "" and again.pem
    assert alarm_of(desk.fleet) is None


def test_copied_identity_that_renews_unnoticed(desk: Desk) -> None:
    first = desk.issue()
    desk.renew(first, DeviceKey())
    thief = desk.renew(first, DeviceKey())
    assert (thief.alarm, thief.pem) == (CLONED, b"")
    assert alarm_of(desk.fleet) == CLONED


def test_alarm_that_cannot_be_cleared_or_does_not_come_again(desk: Desk) -> None:
    first = desk.issue()
    desk.renew(first, DeviceKey())
    desk.renew(first, DeviceKey())
    with desk.fleet.transaction() as session:
        assert leaving.clear_alarm(session, "home", "dev-1") == CLONED
    assert alarm_of(desk.fleet) is None
    with desk.fleet.transaction() as session, pytest.raises(Conflict):
        leaving.clear_alarm(session, "home", "dev-1")
    desk.renew(first, DeviceKey())
    assert alarm_of(desk.fleet) == CLONED


def test_restore_cuts_off_a_device_that_renewed_after_the_backup(desk: Desk) -> None:
    key = DeviceKey()
    known = desk.authority.issue(key.key.public_key(), "dev-1", lifetime_ms=HOUR_MS)
    der = x509.load_pem_x509_certificate(known.pem).public_bytes(Encoding.DER)
    now_ms = desk.clock.now_ms()
    gaps.add_gap(desk.authority.folder, now_ms - HOUR_MS, now_ms)
    restored = replace(desk, authority=reopened(desk.authority.folder, desk.clock))
    assert restored.refused(known) == "unknown_certificate"
    with desk.fleet.transaction() as session:
        assert certificates.recall(session, restored.authority, "home", der, now_ms)
    with desk.fleet.transaction() as session:
        assert not certificates.recall(session, restored.authority, "home", der, now_ms)
    assert restored.holder(known) == "dev-1"
    assert restored.renew(known, DeviceKey()).alarm == ""
    with desk.fleet.transaction() as session:
        leaving.retire(session, "home", "dev-1", now_ms=now_ms)
        assert not certificates.recall(session, restored.authority, "home", der, now_ms)
    assert restored.refused(known) == "revoked_certificate"

"""A fleet in the database: the rows of a first start, and devices that enrol."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fleet_contract.enrolment import EnrolmentRequest, read_token
from fleet_contract.manifest import Capabilities
from fleet_server.clock import Clock
from fleet_server.database import Database
from fleet_server.devices import enrolment, service, stopping
from fleet_server.devices.enrolment import Enrolled
from fleet_server.trust.authority.authority import Authority
from fleet_server.trust.keyring import Keyring
from tests.fleet_server.device_key import DeviceKey


@pytest.fixture
def fleet(database: Database, keyring: Keyring, clock: Clock) -> Database:
    """The database of a fleet that has started once."""
    with database.transaction() as session:
        service.ensure_default_cohort(session, keyring.fleet)
        stopping.ensure_stop(session, keyring, now_ms=clock.now_ms())
    return database


@pytest.fixture
def new_secret(fleet: Database, keyring: Keyring, clock: Clock) -> Callable[..., str]:
    """Make an enrolment token and return its secret."""

    def make(
        valid_ms: int = 60_000,
        device: str = "",
        prefix: str = "",
        count: int = 1,
        replaces: bool = False,
        **labels: str,
    ) -> str:
        with fleet.transaction() as session:
            made = enrolment.create_token(
                session,
                keyring,
                server="http://127.0.0.1:1",
                root="7a" * 32,
                labels=labels,
                device=device,
                prefix=prefix,
                count=count,
                replaces=replaces,
                valid_ms=valid_ms,
                random_bytes=clock.random_bytes,
                now_ms=clock.now_ms(),
            )
        return read_token(made.token).secret

    return make


@pytest.fixture
def spend(
    fleet: Database,
    keyring: Keyring,
    authority: Authority,
    clock: Clock,
    capabilities: Capabilities,
) -> Callable[..., Enrolled]:
    """Spend a secret for a name, with a key of the device's own."""

    def enrol(secret: str, name: str, key: DeviceKey | None = None) -> Enrolled:
        csr = (key or DeviceKey()).csr(name)
        with fleet.transaction() as session:
            return enrolment.enrol(
                session,
                keyring,
                authority,
                EnrolmentRequest(secret, name, capabilities, csr),
                lifetime_hours=24,
                now_ms=clock.now_ms(),
            )

    return enrol


@pytest.fixture
def enrol(
    new_secret: Callable[..., str], spend: Callable[[str, str], Enrolled]
) -> Callable[..., Enrolled]:
    """Bring a device in with these labels."""
    return lambda name, **labels: spend(new_secret(**labels), name)

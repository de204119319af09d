"""Tables of the devices: who they are, in which cohort, and the newest that they said."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Index
from sqlmodel import Field, SQLModel


class DeviceRow(SQLModel, table=True):
    """A device that enrolled. ``cohort`` follows from its labels and the cohorts' selectors."""

    __tablename__ = "device"
    __table_args__ = (Index("device_by_cohort", "fleet", "cohort"),)

    fleet: str = Field(primary_key=True, max_length=63)
    name: str = Field(primary_key=True, max_length=63)
    labels: dict[str, str] = Field(sa_type=JSON)
    cohort: str = Field(max_length=63)
    enrolled_ms: int = Field(sa_type=BigInteger)
    capabilities: dict[str, Any] = Field(sa_type=JSON)
    retired_ms: int | None = Field(default=None, sa_type=BigInteger)
    alarm: str | None = Field(default=None, max_length=40)
    alarm_ms: int | None = Field(default=None, sa_type=BigInteger)


class CertificateRow(SQLModel, table=True):
    """A certificate that was issued to a device, by the SHA-256 of its DER form.

    ``token_hash`` is that of the enrolment token it was issued for, empty for a renewal.
    ``superseded_ms`` says that a newer one was issued for it.
    """

    __tablename__ = "device_certificate"
    __table_args__ = (Index("certificate_by_device", "fleet", "device"),)

    fingerprint: str = Field(primary_key=True, max_length=64)
    fleet: str = Field(max_length=63)
    device: str = Field(max_length=63)
    serial: str = Field(max_length=40)
    key_hash: str = Field(max_length=64)
    issuer: str = Field(max_length=64)
    token_hash: str = Field(max_length=64)
    issued_ms: int = Field(sa_type=BigInteger)
    not_after_ms: int = Field(sa_type=BigInteger)
    superseded_ms: int | None = Field(default=None, sa_type=BigInteger)
    revoked_ms: int | None = Field(default=None, sa_type=BigInteger)


class EnrolmentTokenRow(SQLModel, table=True):
    """A token for ``count`` devices, by the SHA-256 of its secret; ``used`` only ever grows.

    ``id`` names it where its secret must not be seen. ``replaces`` says that ``device`` is there
    already, and gets a new certificate.
    """

    __tablename__ = "enrolment_token"

    secret_hash: str = Field(primary_key=True, max_length=64)
    id: str = Field(max_length=12)
    fleet: str = Field(max_length=63)
    labels: dict[str, str] = Field(sa_type=JSON)
    device: str = Field(max_length=63)
    prefix: str = Field(max_length=63)
    replaces: bool
    count: int
    used: int
    created_ms: int = Field(sa_type=BigInteger)
    expires_ms: int = Field(sa_type=BigInteger)
    revoked_ms: int | None = Field(default=None, sa_type=BigInteger)


class CohortRow(SQLModel, table=True):
    """A named selector over labels; among those that match a device, the highest wins."""

    __tablename__ = "cohort"

    fleet: str = Field(primary_key=True, max_length=63)
    name: str = Field(primary_key=True, max_length=63)
    selector: dict[str, Any] = Field(sa_type=JSON)
    priority: int


class PresenceRow(SQLModel, table=True):
    """The newest birth or will of a device; ``last_seen_ms`` is the server's time.

    ``replaced_session`` is the boot session that spoke before the present one.
    """

    __tablename__ = "presence"

    fleet: str = Field(primary_key=True, max_length=63)
    device: str = Field(primary_key=True, max_length=63)
    online: bool
    birth: int = Field(sa_type=BigInteger)
    session: str = Field(max_length=16)
    replaced_session: str = Field(default="", max_length=16)
    last_seen_ms: int = Field(sa_type=BigInteger)
    agent: str = Field(max_length=40)
    active: dict[str, str] = Field(sa_type=JSON)


class SeenRow(SQLModel, table=True):
    """The highest that a device ever said it has seen; ``reported_ms`` is the server's time."""

    __tablename__ = "device_seen"

    fleet: str = Field(primary_key=True, max_length=63)
    device: str = Field(primary_key=True, max_length=63)
    reported_ms: int = Field(sa_type=BigInteger)
    generation: int = Field(sa_type=BigInteger)
    epoch: int = Field(sa_type=BigInteger)
    root: int = Field(sa_type=BigInteger)
    timestamp: int = Field(sa_type=BigInteger)
    snapshot: int = Field(sa_type=BigInteger)
    targets: int = Field(sa_type=BigInteger)
    families: list[str] = Field(sa_type=JSON)
    release_floors: dict[str, int] = Field(sa_type=JSON)


class StrangerRow(SQLModel, table=True):
    """A device that speaks on the broker and is not in this database."""

    __tablename__ = "stranger"

    fleet: str = Field(primary_key=True, max_length=63)
    name: str = Field(primary_key=True, max_length=63)
    first_ms: int = Field(sa_type=BigInteger)
    last_ms: int = Field(sa_type=BigInteger)
    agent: str = Field(max_length=40)
    active: dict[str, str] = Field(sa_type=JSON)
    capabilities: dict[str, Any] = Field(sa_type=JSON)


class ReportedRow(SQLModel, table=True):
    """Up to where a device's progress messages are committed: the highest (boot, sequence)."""

    __tablename__ = "progress_reported"

    fleet: str = Field(primary_key=True, max_length=63)
    device: str = Field(primary_key=True, max_length=63)
    session: str = Field(max_length=16)
    boot: int = Field(sa_type=BigInteger)
    sequence: int = Field(sa_type=BigInteger)
    received_ms: int = Field(sa_type=BigInteger)


class ProgressRow(SQLModel, table=True):
    """Where a device stands with one model, as its newest progress message says."""

    __tablename__ = "progress"

    fleet: str = Field(primary_key=True, max_length=63)
    device: str = Field(primary_key=True, max_length=63)
    model: str = Field(primary_key=True, max_length=64)
    rollout: str = Field(max_length=64)
    phase: str = Field(max_length=20)
    target: str = Field(max_length=64)
    active: str = Field(max_length=64)
    standby: str = Field(max_length=64)
    generation: int = Field(sa_type=BigInteger)
    epoch: int = Field(sa_type=BigInteger)
    changed_ms: int = Field(sa_type=BigInteger)
    reason: str | None = Field(default=None, max_length=40)
    detail: str = Field(max_length=1000)


class RefusalRow(SQLModel, table=True):
    """A control document that a device did not accept; ``at_ms`` is the device's time."""

    __tablename__ = "refusal"

    fleet: str = Field(primary_key=True, max_length=63)
    device: str = Field(primary_key=True, max_length=63)
    topic: str = Field(primary_key=True, max_length=300)
    at_ms: int = Field(primary_key=True, sa_type=BigInteger)
    reason: str = Field(primary_key=True, max_length=40)
    detail: str = Field(max_length=300)
    received_ms: int = Field(sa_type=BigInteger)


class StopRow(SQLModel, table=True):
    """Whether the fleet is stopped, as its newest stop document says."""

    __tablename__ = "fleet_stop"

    fleet: str = Field(primary_key=True, max_length=63)
    stopped: bool
    reason: str = Field(max_length=300)
    epoch: int = Field(sa_type=BigInteger)
    changed_ms: int = Field(sa_type=BigInteger)

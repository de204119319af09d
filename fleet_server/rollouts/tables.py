"""Tables of the rollouts: campaigns, their stages and members, what was decided and why, and what
each cohort runs. Private to this domain's repository.
"""

from typing import Any

from sqlalchemy import JSON, BigInteger, Index
from sqlmodel import Field, SQLModel

from fleet_server.database import Counter


class RolloutRow(SQLModel, table=True):
    """A campaign. ``plan`` is its JSON; digests are those of manifests. ``revision`` grows with
    every change, so that a decision on an older state is not applied.
    """

    __tablename__ = "rollout"
    __table_args__ = (Index("rollout_by_state", "fleet", "state"),)

    sequence: int | None = Field(default=None, primary_key=True, sa_type=Counter)
    id: str = Field(unique=True, max_length=64)
    fleet: str = Field(max_length=63)
    cohort: str = Field(max_length=63)
    model: str = Field(max_length=64)
    version: str = Field(max_length=100)
    candidate: str = Field(max_length=64)
    stable: str = Field(default="", max_length=64)
    state: str = Field(max_length=20)
    revision: int = Field(default=0, sa_type=BigInteger)
    plan: str
    salt: str = Field(default="", max_length=32)
    retry: int = Field(default=0)
    stage: int = Field(default=-1)
    created_ms: int = Field(sa_type=BigInteger)
    started_ms: int = Field(default=0, sa_type=BigInteger)
    exposed_ms: int = Field(default=0, sa_type=BigInteger)
    ended_ms: int = Field(default=0, sa_type=BigInteger)
    rollback_ms: int = Field(default=0, sa_type=BigInteger)
    rollback_epoch: int = Field(default=0, sa_type=BigInteger)
    held: bool = Field(default=False)
    reason: str = Field(default="")
    created_by: str = Field(max_length=100)
    correlation_id: str = Field(max_length=64)


class StageRow(SQLModel, table=True):
    """One stage that began. ``arm_last`` is a bucket as 16 hexadecimal digits."""

    __tablename__ = "rollout_stage"

    rollout: str = Field(primary_key=True, max_length=64)
    number: int = Field(primary_key=True)
    state: str = Field(max_length=20)
    began_ms: int = Field(sa_type=BigInteger)
    ended_ms: int = Field(default=0, sa_type=BigInteger)
    deadline_at_ms: int = Field(sa_type=BigInteger)
    arm_last: str = Field(max_length=16)
    not_at_risk: list[str] = Field(sa_type=JSON)
    soaking_since_ms: int | None = Field(default=None, sa_type=BigInteger)
    looks_done: int = Field(default=0)
    passed: list[str] = Field(sa_type=JSON)


class MemberRow(SQLModel, table=True):
    """A device of the frozen membership. ``…_seen_ms`` is when the server first saw it run the
    candidate, or confirm the rollback (0: not yet); ``…_changed_ms`` is the device's own time.
    """

    __tablename__ = "rollout_member"

    rollout: str = Field(primary_key=True, max_length=64)
    device: str = Field(primary_key=True, max_length=63)
    eligible: bool
    candidate_seen_ms: int = Field(default=0, sa_type=BigInteger)
    candidate_changed_ms: int = Field(default=0, sa_type=BigInteger)
    confirmed_seen_ms: int = Field(default=0, sa_type=BigInteger)
    confirmed_changed_ms: int = Field(default=0, sa_type=BigInteger)


class EvidenceRow(SQLModel, table=True):
    """A decision worth keeping, as JSON; ``inputs`` addresses what it was made from."""

    __tablename__ = "rollout_evidence"
    __table_args__ = (Index("rollout_evidence_by_rollout", "rollout", "sequence"),)

    sequence: int | None = Field(default=None, primary_key=True, sa_type=Counter)
    rollout: str = Field(max_length=64)
    stage: int
    kind: str = Field(max_length=20)
    decided_ms: int = Field(sa_type=BigInteger)
    epoch: int = Field(default=0, sa_type=BigInteger)
    decision: dict[str, Any] = Field(sa_type=JSON)
    inputs: str = Field(max_length=64)


class InputsRow(SQLModel, table=True):
    """A decision's inputs: gzip of MessagePack, addressed by the SHA-256 of the latter."""

    __tablename__ = "rollout_inputs"

    digest: str = Field(primary_key=True, max_length=64)
    body: bytes


class CohortReleaseRow(SQLModel, table=True):
    """What a cohort runs of a model, and the newest directive that says so (JSON).

    ``previous`` is what a rollback of the completed rollout would return to.
    """

    __tablename__ = "cohort_release"

    fleet: str = Field(primary_key=True, max_length=63)
    cohort: str = Field(primary_key=True, max_length=63)
    model: str = Field(primary_key=True, max_length=64)
    release: str = Field(default="", max_length=64)
    version: str = Field(default="", max_length=100)
    previous: str = Field(default="", max_length=64)
    retry: int = Field(default=0)
    rollout: str = Field(default="", max_length=64)
    directive: str = Field(default="")
    epoch: int = Field(default=0, sa_type=BigInteger)
    expires_ms: int = Field(default=0, sa_type=BigInteger)


class LeaseRow(SQLModel, table=True):
    """Which replica decides, until when."""

    __tablename__ = "controller_lease"

    fleet: str = Field(primary_key=True, max_length=63)
    holder: str = Field(max_length=40)
    expires_ms: int = Field(sa_type=BigInteger)

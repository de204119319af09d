"""The audit as the API shows it."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fleet_server.audit import service
from fleet_server.audit.service import Entry
from fleet_server.audit.verification import Verification

_HASH = "5e2b0a53b45aa8b0a5ba0a83e9c2e4f4a9b6dba7d2f6f4c6c0b1d0a0d9b1c2d3"


class AuditEntry(BaseModel):
    """Who did what to what, when, how it ended, and under which correlation id.

    ``previous`` is the hash of the record before, ``hash`` that of this one's canonical text.
    """

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "example": {
                "sequence": 7,
                "timestamp": "2026-11-18T17:46:40.000Z",
                "at_ms": 1_795_000_000_000,
                "agent": "edgefleet/0.1.0",
                "user": "admin",
                "environment": "production",
                "command": "POST /v1/rollouts/9f2c41d07ab3/rollback",
                "resource_type": "rollout",
                "resource_name": "9f2c41d07ab3",
                "action": "rollout.rollback",
                "model_name": "detector",
                "model_version": "1.1.0",
                "previous_version": "1.0.0",
                "change_ticket": "CHG-1042",
                "outcome": "done",
                "rollback_config": None,
                "duration_ms": 12,
                "reason": "customers complain",
                "skipped_safeguards": [],
                "correlation_id": "4f1c0c8a9be24d0e",
                "detail": {"cohort": "lab"},
                "previous": _HASH,
                "hash": _HASH,
            }
        },
    )

    sequence: int
    timestamp: str
    at_ms: int
    agent: str
    user: str
    environment: str
    command: str
    resource_type: str
    resource_name: str
    action: str
    model_name: str
    model_version: str
    previous_version: str
    change_ticket: str
    outcome: str
    rollback_config: dict[str, Any] | None
    duration_ms: int | None
    reason: str
    skipped_safeguards: list[str]
    correlation_id: str
    detail: dict[str, Any]
    previous: str
    hash: str

    @classmethod
    def of(cls, entry: Entry) -> "AuditEntry":
        values = {name: getattr(entry, name) for name in entry.__dataclass_fields__}
        return cls(**values, at_ms=service.at_ms(entry.timestamp))


class AuditPage(BaseModel):
    """Entries, the newest first; ``next_before`` asks for the page after this one."""

    entries: list[AuditEntry]
    next_before: int | None


class FindingShown(BaseModel):
    """A record that is not as it was written, or is not there."""

    model_config = ConfigDict(from_attributes=True)

    sequence: int
    problem: str


class VerificationShown(BaseModel):
    """How the chain was found. ``signed_sequence`` is the last record that a signed checkpoint
    vouches for.
    """

    model_config = ConfigDict(from_attributes=True)

    intact: Annotated[bool, Field(examples=[True])]
    records: Annotated[int, Field(examples=[1042])]
    head: Annotated[str, Field(examples=[_HASH])]
    checkpoints: Annotated[int, Field(examples=[17])]
    signed_sequence: Annotated[int, Field(examples=[1040])]
    findings: list[FindingShown]

    @classmethod
    def of(cls, found: Verification) -> "VerificationShown":
        return cls.model_validate(found)


class CheckpointShown(BaseModel):
    """A signed statement of the chain's hash at a record: a DSSE envelope, as text."""

    model_config = ConfigDict(from_attributes=True)

    sequence: Annotated[int, Field(examples=[1040])]
    made_ms: Annotated[int, Field(examples=[1_795_000_000_000])]
    envelope: Annotated[str, Field(examples=['{"payload": "eyJm...", "signatures": []}'])]


class CheckpointList(BaseModel):
    """All checkpoints, the oldest first, and the public keys that are believed now."""

    fleet: Annotated[str, Field(examples=["home"])]
    keys: Annotated[dict[str, str], Field(examples=[{_HASH: _HASH}])]
    checkpoints: list[CheckpointShown]

"""The audit as the API shows it."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class AuditEntry(BaseModel):
    """Who did what to what, when, how it ended, and under which correlation id."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "example": {
                "sequence": 7,
                "at_ms": 1_795_000_000_000,
                "user": "admin",
                "action": "cohort.create",
                "resource_type": "cohort",
                "resource_name": "lab",
                "outcome": "done",
                "correlation_id": "4f1c0c8a9be24d0e",
                "detail": {"priority": 10},
            }
        },
    )

    sequence: int
    at_ms: int
    user: str
    action: str
    resource_type: str
    resource_name: str
    outcome: str
    correlation_id: str
    detail: dict[str, Any]


class AuditPage(BaseModel):
    """Entries, the newest first; ``next_before`` asks for the page after this one."""

    entries: list[AuditEntry]
    next_before: int | None

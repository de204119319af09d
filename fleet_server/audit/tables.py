"""Tables of the audit: one row for everything that changed something, or was refused."""

from typing import Any

from sqlalchemy import JSON, BigInteger
from sqlmodel import Field, SQLModel

from fleet_server.database import Counter


class AuditRow(SQLModel, table=True):
    """One entry. Rows are added, never changed; ``sequence`` orders them."""

    __tablename__ = "audit_entry"

    sequence: int | None = Field(default=None, primary_key=True, sa_type=Counter)
    at_ms: int = Field(sa_type=BigInteger)
    user: str = Field(max_length=63)
    action: str = Field(max_length=63)
    resource_type: str = Field(max_length=63)
    resource_name: str = Field(max_length=300)
    outcome: str = Field(max_length=63)
    correlation_id: str = Field(max_length=64)
    detail: dict[str, Any] = Field(sa_type=JSON)

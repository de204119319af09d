"""Table of the bench devices: who was there, and what they did."""

from typing import Any

from sqlalchemy import JSON, BigInteger
from sqlmodel import Field, SQLModel


class BenchRow(SQLModel, table=True):
    """A device that ever asked for a bench job; times are the server's.

    ``polled_ms`` is when it last asked or handed in a result, ``used_ms`` when it was last given a
    job, 0 for never. ``number`` is the highest of a job that it was given or says that it began.
    """

    __tablename__ = "bench"

    fleet: str = Field(primary_key=True, max_length=63)
    device: str = Field(primary_key=True, max_length=63)
    capabilities: dict[str, Any] = Field(sa_type=JSON)
    polled_ms: int = Field(sa_type=BigInteger)
    used_ms: int = Field(sa_type=BigInteger)
    number: int = Field(sa_type=BigInteger)
    jobs_done: int

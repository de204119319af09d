"""Table of telemetry: the newest state of each window of each device."""

from sqlalchemy import BigInteger, Index
from sqlmodel import Field, SQLModel


class WindowRow(SQLModel, table=True):
    """One window. ``received_ms`` is the server's time of the first message about it, and
    ``updated_ms`` of the one that gave it its present state; ``body`` is the contract's Window.
    """

    __tablename__ = "window"
    __table_args__ = (
        Index("window_by_arrival", "fleet", "model", "received_ms"),
        Index("window_by_device", "fleet", "model", "device", "updated_ms"),
    )

    fleet: str = Field(primary_key=True, max_length=63)
    device: str = Field(primary_key=True, max_length=63)
    session: str = Field(primary_key=True, max_length=16)
    model: str = Field(primary_key=True, max_length=64)
    release: str = Field(primary_key=True, max_length=64)
    role: str = Field(primary_key=True, max_length=10)
    start_ms: int = Field(primary_key=True, sa_type=BigInteger)
    sequence: int = Field(sa_type=BigInteger)
    length_ms: int = Field(sa_type=BigInteger)
    closed: bool
    predictions: int = Field(sa_type=BigInteger)
    errors: int = Field(sa_type=BigInteger)
    received_ms: int = Field(sa_type=BigInteger)
    updated_ms: int = Field(sa_type=BigInteger)
    body: bytes

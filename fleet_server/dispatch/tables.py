"""Tables of dispatch: the control messages that the broker must hold, and the fleet's epoch."""

from sqlalchemy import BigInteger, Index
from sqlmodel import Field, SQLModel


class ControlMessageRow(SQLModel, table=True):
    """One retained message as it must be on the broker; the newest state, not a history."""

    __tablename__ = "control_message"
    __table_args__ = (Index("control_message_by_epoch", "fleet", "epoch"),)

    topic: str = Field(primary_key=True, max_length=300)
    fleet: str = Field(max_length=63)
    epoch: int = Field(sa_type=BigInteger)
    payload: bytes
    written_ms: int = Field(sa_type=BigInteger)


class FleetEpochRow(SQLModel, table=True):
    """The highest epoch that was given out in a fleet."""

    __tablename__ = "fleet_epoch"

    fleet: str = Field(primary_key=True, max_length=63)
    epoch: int = Field(sa_type=BigInteger)

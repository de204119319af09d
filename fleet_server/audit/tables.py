"""Tables of the audit: the chain, its head, and the checkpoints that were signed."""

from sqlalchemy import BigInteger, Index
from sqlmodel import Field, SQLModel


class AuditRow(SQLModel, table=True):
    """One record of the chain. Rows are added, never changed.

    ``record`` is the exact text that was hashed; the columns beside it repeat what is searched.
    """

    __tablename__ = "audit_record"
    __table_args__ = (Index("audit_record_by_release", "model_name", "model_version"),)

    sequence: int = Field(
        primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False}
    )
    model_name: str = Field(max_length=64)
    model_version: str = Field(max_length=100)
    record: str
    hash: str = Field(max_length=64)


class AuditHeadRow(SQLModel, table=True):
    """The end of the chain, in one row: who appends locks it."""

    __tablename__ = "audit_head"

    id: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    sequence: int = Field(sa_type=BigInteger)
    hash: str = Field(max_length=64)


class CheckpointRow(SQLModel, table=True):
    """A signed statement that the record of this sequence has a certain hash."""

    __tablename__ = "audit_checkpoint"

    sequence: int = Field(
        primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False}
    )
    made_ms: int = Field(sa_type=BigInteger)
    envelope: str

"""Table of what the collector found to be needed by nobody, until it goes or is needed again."""

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel


class GarbageRow(SQLModel, table=True):
    """A file of the store, by its path below the data folder; ``marked_ms`` is the server's time
    when it was first found.
    """

    __tablename__ = "garbage"

    path: str = Field(primary_key=True, max_length=300)
    size_bytes: int = Field(sa_type=BigInteger)
    marked_ms: int = Field(sa_type=BigInteger)

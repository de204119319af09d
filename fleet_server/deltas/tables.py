"""Table of patches: one row a pair of artifacts that was tried."""

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel


class DeltaRow(SQLModel, table=True):
    """One patch. ``patch_digest`` is the SHA-256 under which it lies on disk, if it was made."""

    __tablename__ = "delta"

    old_digest: str = Field(primary_key=True, max_length=64)
    new_digest: str = Field(primary_key=True, max_length=64, index=True)
    model: str = Field(max_length=64)
    old_version: str = Field(max_length=96)
    new_version: str = Field(max_length=96)
    state: str = Field(max_length=10)
    patch_digest: str | None = Field(default=None, max_length=64)
    patch_bytes: int = Field(sa_type=BigInteger)
    new_bytes: int = Field(sa_type=BigInteger)
    encode_ms: int = Field(sa_type=BigInteger)
    made_ms: int = Field(sa_type=BigInteger)

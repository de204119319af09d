"""Tables of access: the tokens of people and programs that operate the fleet."""

from sqlalchemy import JSON, BigInteger
from sqlmodel import Field, SQLModel


class ApiTokenRow(SQLModel, table=True):
    """One token, by its SHA-256: whoever reads the database learns no token.

    ``id`` is what people call it: the hash's first digits. Empty ``fleets`` and ``models`` mean
    all; ``expires_ms`` 0 means never, which only the first token of a data folder is.
    """

    __tablename__ = "api_token"

    token_hash: str = Field(primary_key=True, max_length=64)
    id: str = Field(unique=True, max_length=16)
    user: str = Field(max_length=63)
    roles: list[str] = Field(sa_type=JSON)
    fleets: list[str] = Field(sa_type=JSON)
    models: list[str] = Field(sa_type=JSON)
    created_ms: int = Field(sa_type=BigInteger)
    created_by: str = Field(max_length=100)
    expires_ms: int = Field(sa_type=BigInteger)
    revoked_ms: int = Field(default=0, sa_type=BigInteger)

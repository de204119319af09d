"""Tables of access: the tokens of people and programs that operate the fleet."""

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel


class ApiTokenRow(SQLModel, table=True):
    """One token, by its SHA-256: whoever reads the database learns no token."""

    __tablename__ = "api_token"

    token_hash: str = Field(primary_key=True, max_length=64)
    user: str = Field(max_length=63)
    created_ms: int = Field(sa_type=BigInteger)

"""Tokens as the API takes and shows them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

DAY_MS = 24 * 3_600_000
Names = Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=100)]


class TokenRequest(BaseModel):
    """Asks for a token. ``models`` are names, or beginnings of names and ``*``; empty means all."""

    model_config = ConfigDict(extra="forbid")

    user: Annotated[str, Field(min_length=1, max_length=63, examples=["ann@example.org"])]
    roles: Annotated[Names, Field(min_length=1, examples=[["operator"]])]
    fleets: Annotated[Names, Field(examples=[["home"]])] = []
    models: Annotated[Names, Field(examples=[["vision-*"]])] = []
    valid_ms: Annotated[int, Field(ge=60_000, le=366 * DAY_MS, examples=[90 * DAY_MS])] = (
        90 * DAY_MS
    )


class TokenInfo(BaseModel):
    """A token without what would let anybody in; ``expires_ms`` 0 means never, ``revoked_ms`` 0
    that it was not.
    """

    model_config = ConfigDict(from_attributes=True)

    id: Annotated[str, Field(examples=["5b0c1d2e3f40"])]
    user: Annotated[str, Field(examples=["ann@example.org"])]
    roles: Annotated[list[str], Field(examples=[["operator"]])]
    fleets: list[str]
    models: list[str]
    created_by: Annotated[str, Field(examples=["admin"])]
    created_ms: Annotated[int, Field(examples=[1_795_000_000_000])]
    expires_ms: Annotated[int, Field(examples=[1_802_776_000_000])]
    revoked_ms: int


class TokenMade(BaseModel):
    """A new token. It is not shown again."""

    token: Annotated[str, Field(examples=["ef_5b0c...64 hexadecimal digits"])]
    info: TokenInfo


class TokenList(BaseModel):
    """All tokens, the newest first."""

    tokens: list[TokenInfo]

"""The day after a restore, as the API takes and shows it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class SeenShown(BaseModel):
    """The highest of each counter."""

    model_config = ConfigDict(from_attributes=True)

    generation: Annotated[int, Field(examples=[2])]
    epoch: Annotated[int, Field(examples=[1_795_000_000_000])]
    root: Annotated[int, Field(examples=[1])]
    timestamp: Annotated[int, Field(examples=[117])]
    snapshot: Annotated[int, Field(examples=[31])]
    targets: Annotated[int, Field(examples=[64])]
    release_floors: Annotated[dict[str, int], Field(examples=[{"digits": 5}])]


class StrangerShown(BaseModel):
    """A device that speaks on the broker and is not known here."""

    model_config = ConfigDict(from_attributes=True)

    name: Annotated[str, Field(examples=["dev-0042"])]
    first_ms: int
    last_ms: int
    agent: str
    active: dict[str, str]


class ElsewhereShown(BaseModel):
    """A device that runs a release which is not known here."""

    model_config = ConfigDict(from_attributes=True)

    device: Annotated[str, Field(examples=["dev-0042"])]
    model: Annotated[str, Field(examples=["digits"])]
    digest: str


class AfterRestoreShown(BaseModel):
    """What devices have told since the restore. ``restored_ms`` is null once this server leads."""

    restored_ms: Annotated[int | None, Field(examples=[1_795_000_000_000])]
    backup_made_ms: int | None
    known: Annotated[int, Field(examples=[20])]
    reported: Annotated[int, Field(examples=[20])]
    silent: list[str]
    held: SeenShown
    seen: SeenShown
    implausible: list[str]
    strangers: list[StrangerShown]
    unknown_releases: list[ElsewhereShown]


class AfterRestoreBody(BaseModel):
    """``adopt`` takes the unknown devices back, without labels. ``accept_floors`` says that
    somebody looked at the release floors that devices hold."""

    model_config = ConfigDict(extra="forbid")

    adopt: Annotated[bool, Field(examples=[False])] = False
    accept_floors: Annotated[bool, Field(examples=[False])] = False


class RaisedShown(BaseModel):
    """What was done; ``unsigned`` are roles whose keys are elsewhere.

    Unless ``complete`` the keyset waits for one of these, and the server does not lead yet.
    """

    generation: int
    documents: int
    unsigned: list[str]
    adopted: list[str]
    complete: bool
    before: AfterRestoreShown

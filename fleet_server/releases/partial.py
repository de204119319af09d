"""What is known of an upload in pieces: as written down, as shown, and as taken for a release."""

from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract.names import DIGEST_PATTERN

PLAN_BYTES = 4096
"""The file that says what an upload will be; its names are bounded and take below 1 KiB."""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was announced: ``field`` says which file of a release it is to be."""

    id: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    owner: Annotated[str, Meta(max_length=1000)]
    field: Annotated[str, Meta(max_length=40)]
    size_bytes: Annotated[int, Meta(ge=1)]
    sha256: Annotated[str, Meta(pattern=DIGEST_PATTERN)]
    begun_ms: Annotated[int, Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class View:
    """How far an upload is. ``complete`` means that its digest is the announced one."""

    id: str
    owner: str
    field: str
    size_bytes: int
    sha256: str
    offset_bytes: int
    complete: bool
    expires_ms: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """A whole upload that has become a file of a release."""

    id: str
    size_bytes: int
    sha256: str

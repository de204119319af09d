"""Presence: a retained birth message, and the last will that takes its place.

The birth number grows with every connection of a device, so that the will of an older connection
that arrives late cannot make a device look gone.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract import codec, limits
from fleet_contract.counts import Count
from fleet_contract.manifest import Capabilities

SESSION_PATTERN = r"^[0-9a-f]{16}\Z"
Session = Annotated[str, Meta(pattern=SESSION_PATTERN)]
"""A boot session of an agent: 8 random bytes in hexadecimal, drawn when the process starts."""


class Presence(msgspec.Struct, frozen=True):
    """Birth (``online``) or last will of a device; ``active`` maps a model to the digest of the
    manifest that really runs, or to an empty text.
    """

    online: bool
    birth: Count
    session: Session
    wire: Count
    agent: Annotated[str, Meta(max_length=40)]
    capabilities: Capabilities | None
    active: dict[str, str]


def read_presence(data: bytes) -> Presence:
    """Read a presence message (MessagePack).

    Raises:
        Refused: ``too_large`` or ``malformed``.
    """
    return codec.decode_msgpack(data, Presence, limit_bytes=limits.STATUS_BYTES)

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
from fleet_contract.names import ModelName

SESSION_PATTERN = r"^[0-9a-f]{16}\Z"
Session = Annotated[str, Meta(pattern=SESSION_PATTERN)]
"""A boot session of an agent: 8 random bytes in hexadecimal, drawn when the process starts."""


class Seen(msgspec.Struct, frozen=True):
    """The highest that a device believes of each counter: below it, it believes nobody.

    A server that was restored from a backup learns from it where it has to go on. ``generation``
    and ``epoch`` are those of control documents; the others are versions of the metadata that the
    device holds (0: none), ``targets`` the highest of any targets metadata that its snapshot
    names. ``families`` are the models that this snapshot names, the first 256 in order of their
    names: a snapshot without one of them is refused. ``release_floors`` are
    those of the keyset that it believes: a keyset with lower ones is refused.
    """

    generation: Count = 0
    epoch: Count = 0
    root: Count = 0
    timestamp: Count = 0
    snapshot: Count = 0
    targets: Count = 0
    families: Annotated[list[ModelName], Meta(max_length=limits.FAMILIES)] = []
    release_floors: Annotated[dict[ModelName, Count], Meta(max_length=limits.FAMILIES)] = {}


NOTHING_SEEN = Seen()


class Presence(msgspec.Struct, frozen=True):
    """Birth (``online``) or last will of a device; ``active`` maps a model to the digest of the
    manifest that really runs, or to an empty text. An older agent says nothing of what it has seen.
    """

    online: bool
    birth: Count
    session: Session
    wire: Count
    agent: Annotated[str, Meta(max_length=40)]
    capabilities: Capabilities | None
    active: dict[str, str]
    seen: Seen = NOTHING_SEEN


def read_presence(data: bytes) -> Presence:
    """Read a presence message (MessagePack).

    Raises:
        Refused: ``too_large`` or ``malformed``.
    """
    return codec.decode_msgpack(data, Presence, limit_bytes=limits.STATUS_BYTES)

"""What ingest hands to the domains, and what they hand back.

A handler stores a batch of one channel's messages in the session that it is given and returns
what devices may be told is committed, once it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlmodel import Session

from fleet_contract.messages.presence import Presence
from fleet_contract.messages.progress import Progress
from fleet_contract.messages.report import Report, WindowAck
from fleet_contract.topics import DeviceChannel

Message = Presence | Progress | Report


@dataclass(frozen=True, slots=True)
class Inbound:
    """A well-formed message of a device. ``model`` is empty except for reports; ``received_ms``
    is the server's time of its arrival.
    """

    fleet: str
    device: str
    channel: DeviceChannel
    model: str
    message: Message
    received_ms: int


@dataclass(frozen=True, slots=True)
class DeviceAck:
    """What is committed of one boot session of a device; -1 for no progress message."""

    device: str
    session: str
    progress: int = -1
    windows: tuple[WindowAck, ...] = ()


Handler = Callable[[Session, Sequence[Inbound], int], Sequence[DeviceAck]]
"""``handler(session, messages of one channel in order of arrival, now_ms)``. It is called again
with the same messages when the transaction failed, so it must be idempotent. A message that it
cannot store it skips; when it raises, dispatch finds the message and drops it."""

"""What the core decides: packets to send and connections to close, as data.

Decides the vocabulary between the core and its shells (the listener, the simulator). Leaves
out how a packet reaches its connection.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from fleet_server.broker.messages import Frame
from fleet_server.broker.packets import Packet


class Deliver(Struct, frozen=True, gc=False):
    """A PUBLISH of the broker; the frame is shared by all receivers, the identifier is not."""

    connection: int
    frame: Frame
    packet_id: int


class Send(Struct, frozen=True, gc=False):
    """Any other packet, in the protocol version of its receiver."""

    connection: int
    packet: Packet
    version: int


class Close(Struct, frozen=True, gc=False):
    """The core has forgotten the connection; what was sent before still goes out."""

    connection: int


Output: TypeAlias = Deliver | Send | Close

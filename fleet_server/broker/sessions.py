"""What the broker remembers of one connected client.

Decides the state of a session, which here lives exactly as long as its connection (Session
Expiry Interval 0, section 3.1.2.11.2). Leaves out what changes it (``core``, ``delivery``).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from fleet_server.broker.messages import Message, Variant
from fleet_server.broker.packet_types import PacketType
from fleet_server.broker.packets import Will


@dataclass(slots=True, eq=False)
class Subscription:
    """One topic filter of one session, with the options of section 3.8.3.1."""

    topic_filter: str
    qos: int
    no_local: bool
    retain_as_published: bool
    identifiers: tuple[int, ...]  # the subscription identifier, if any


@dataclass(slots=True, eq=False)
class Session:
    """Sessions are compared and hashed by identity: a client that reconnects gets another one."""

    connection: int
    client_id: str
    identity: str
    version: int
    will: Will | None
    keep_alive_ms: int  # 0: never times out
    send_quota: int  # publishes above QoS 0 that may be in flight to the client (4.9)
    maximum_packet_size_bytes: int  # of the client (3.1.2.11.4)
    last_received_ms: int
    # False while the shell's write buffer for this client is above its high-water mark.
    writable: bool = True
    overflowed: bool = False
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    # Packet identifiers in use towards the client, and the packet each of them waits for.
    in_flight: dict[int, PacketType] = field(default_factory=dict)
    last_packet_id: int = 0
    queue: deque[tuple[Message, Variant]] = field(default_factory=deque)
    queued_bytes: int = 0
    # QoS 2 publishes of the client whose PUBREL is still to come (4.3.3).
    unreleased: set[int] = field(default_factory=set)

    def take_packet_id(self) -> int:
        """The next identifier that is not in use (2.2.1); ``in_flight`` has room by its quota."""
        packet_id = self.last_packet_id
        while True:
            packet_id = packet_id % 0xFFFF + 1
            if packet_id not in self.in_flight:
                self.last_packet_id = packet_id
                return packet_id

"""From the broker to one client: flow control, QoS handshakes, the bounded queue (4.3, 4.9).

Decides whether a message goes out now, waits or is dropped. The policy when a client is slow:
QoS 0 is dropped and counted, QoS 1 and 2 wait in a bounded queue, and past its bounds the
client is disconnected (Quota exceeded), so that a loss is seen and a reconnect repairs it.
Leaves out who receives what (``subscriptions``).
"""

from __future__ import annotations

from dataclasses import dataclass

from fleet_server.broker.limits import Limits
from fleet_server.broker.messages import Frame, Message, Variant
from fleet_server.broker.outputs import Deliver, Output, Send
from fleet_server.broker.packet_types import PacketType
from fleet_server.broker.packets import PubAck, PubComp, PubRec, PubRel
from fleet_server.broker.reason_codes import ReasonCode
from fleet_server.broker.sessions import Session


@dataclass(slots=True)
class Statistics:
    """Counters since the start; a restart begins at zero."""

    connections_accepted: int = 0
    connections_refused: int = 0
    malformed_packets: int = 0
    messages_received: int = 0
    messages_delivered: int = 0
    messages_dropped: int = 0
    messages_expired: int = 0
    slow_clients_disconnected: int = 0


class Delivery:
    """Acts on one session at a time and collects those that overflowed, for the core to close."""

    def __init__(self, limits: Limits, statistics: Statistics) -> None:
        self._limits = limits
        self._statistics = statistics
        self.overflowed: list[Session] = []

    def deliver(
        self,
        session: Session,
        message: Message,
        variant: Variant,
        now_ms: int,
        outputs: list[Output],
    ) -> None:
        frame = message.frame(variant, now_ms)
        if frame is None:
            self._statistics.messages_expired += 1
            return
        if frame.size_bytes > session.maximum_packet_size_bytes:
            # 3.1.2.11.4: dropped as if sending it had been completed.
            self._statistics.messages_dropped += 1
            return
        if variant.qos == 0:
            if session.writable:
                outputs.append(Deliver(session.connection, frame, 0))
                self._statistics.messages_delivered += 1
            else:
                self._statistics.messages_dropped += 1
            return
        if (
            session.queue
            or not session.writable
            or len(session.in_flight) >= session.send_quota  # 4.9
        ):
            self._enqueue(session, message, variant)
            return
        self._transmit(session, frame, variant.qos, outputs)

    def _transmit(self, session: Session, frame: Frame, qos: int, outputs: list[Output]) -> None:
        packet_id = session.take_packet_id()
        session.in_flight[packet_id] = PacketType.PUBACK if qos == 1 else PacketType.PUBREC
        outputs.append(Deliver(session.connection, frame, packet_id))
        self._statistics.messages_delivered += 1

    def _enqueue(self, session: Session, message: Message, variant: Variant) -> None:
        if session.overflowed:
            return
        size_bytes = session.queued_bytes + len(message.payload)
        if (
            len(session.queue) >= self._limits.max_queued_messages
            or size_bytes > self._limits.max_queued_bytes
        ):
            session.overflowed = True
            self.overflowed.append(session)
            self._statistics.messages_dropped += len(session.queue) + 1
            self._statistics.slow_clients_disconnected += 1
            return
        session.queue.append((message, variant))
        session.queued_bytes = size_bytes

    def send_waiting(self, session: Session, now_ms: int, outputs: list[Output]) -> None:
        """Sends from the queue what flow control now allows."""
        queue = session.queue
        while queue and session.writable and len(session.in_flight) < session.send_quota:
            message, variant = queue.popleft()
            session.queued_bytes -= len(message.payload)
            frame = message.frame(variant, now_ms)
            if frame is None:
                self._statistics.messages_expired += 1
            else:
                self._transmit(session, frame, variant.qos, outputs)

    def on_puback(
        self, session: Session, packet: PubAck, now_ms: int, outputs: list[Output]
    ) -> None:
        # An identifier that is not in flight has no error of its own (3.4): it is ignored.
        if session.in_flight.get(packet.packet_id) is PacketType.PUBACK:
            del session.in_flight[packet.packet_id]
            if session.queue:
                self.send_waiting(session, now_ms, outputs)

    def on_pubrec(
        self, session: Session, packet: PubRec, now_ms: int, outputs: list[Output]
    ) -> None:
        packet_id = packet.packet_id
        if session.in_flight.get(packet_id) not in (PacketType.PUBREC, PacketType.PUBCOMP):
            unknown = PubRel(packet_id, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND)
            outputs.append(Send(session.connection, unknown, session.version))
        elif packet.reason.is_failure:  # 4.3.3: the receiver refused it, the exchange is over
            del session.in_flight[packet_id]
            self.send_waiting(session, now_ms, outputs)
        else:
            session.in_flight[packet_id] = PacketType.PUBCOMP
            outputs.append(Send(session.connection, PubRel(packet_id), session.version))

    def on_pubcomp(
        self, session: Session, packet: PubComp, now_ms: int, outputs: list[Output]
    ) -> None:
        if session.in_flight.get(packet.packet_id) is PacketType.PUBCOMP:
            del session.in_flight[packet.packet_id]
            self.send_waiting(session, now_ms, outputs)

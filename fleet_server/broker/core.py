"""The embedded broker without sockets: events in, packets and closes out.

Decides everything that MQTT leaves to a server (chapter 4): who is connected, who receives a
message, what is retained, when a will is published. Time is an argument, connections are
numbers, and nothing here waits; the listener and the simulator's virtual-time world run the
very same code. Leaves out bytes (``codec``) and sockets (``listener``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fleet_server.broker.connecting import Arrival, judge, welcome
from fleet_server.broker.deadlines import Deadlines
from fleet_server.broker.delivery import Statistics
from fleet_server.broker.errors import PacketError
from fleet_server.broker.exchange import Exchange
from fleet_server.broker.limits import Limits
from fleet_server.broker.outputs import Close, Output, Send
from fleet_server.broker.packet_types import MQTT_5
from fleet_server.broker.packets import (
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Subscribe,
    Unsubscribe,
)
from fleet_server.broker.policy import AllowAll, PeerCertificate, Policy
from fleet_server.broker.reason_codes import DISCONNECT_CODES, ReasonCode
from fleet_server.broker.sessions import Session
from fleet_server.broker.wire_types import protocol_error


class BrokerCore:
    """One broker. Every method returns the outputs of its event, in the order to send them.

    A connection is named by a number that its shell never uses again. After ``Close`` the
    core has forgotten it; later events about it are ignored.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        policy: Policy | None = None,
        assigned_client_id_prefix: str = "auto-",
    ) -> None:
        self.limits = limits or Limits()
        self.statistics = Statistics()
        self._policy: Policy = policy or AllowAll()
        self._assigned_client_id_prefix = assigned_client_id_prefix
        self._arriving: dict[int, PeerCertificate | None] = {}
        self._sessions: dict[int, Session] = {}
        self._session_of_client: dict[str, Session] = {}
        self._exchange = Exchange(self.limits, self._policy, self.statistics)
        self._delivery = self._exchange.delivery
        self._deadlines = Deadlines()
        self._handlers: dict[type[Any], Callable[[Session, Any, int, list[Output]], None]] = {
            Publish: self._exchange.on_publish,
            PubAck: self._delivery.on_puback,
            PubRec: self._delivery.on_pubrec,
            PubRel: self._exchange.on_pubrel,
            PubComp: self._delivery.on_pubcomp,
            Subscribe: self._exchange.on_subscribe,
            Unsubscribe: self._exchange.on_unsubscribe,
            PingReq: self._on_pingreq,
            Disconnect: self._on_disconnect,
        }

    # -- what a shell looks at ---------------------------------------------------------------

    @property
    def connections(self) -> int:
        return len(self._sessions)

    @property
    def subscriptions(self) -> int:
        return self._exchange.subscriptions.count

    @property
    def retained_messages(self) -> int:
        return len(self._exchange.retained)

    @property
    def retained_bytes(self) -> int:
        return self._exchange.retained.size_bytes

    def next_deadline_ms(self) -> int | None:
        """When ``tick`` is due next; None while nobody is connected."""
        return self._deadlines.next_ms()

    # -- events ------------------------------------------------------------------------------

    def opened(
        self, connection: int, now_ms: int, certificate: PeerCertificate | None = None
    ) -> list[Output]:
        """A network connection exists; its CONNECT has to follow in time (3.1.4)."""
        if len(self._arriving) + len(self._sessions) >= 2 * self.limits.max_connections:
            # Connections that never say CONNECT must not exhaust the process either.
            self.statistics.connections_refused += 1
            return [Close(connection)]
        self._arriving[connection] = certificate
        self._deadlines.add(now_ms + self.limits.connect_timeout_ms, connection)
        return []

    def received(self, connection: int, packet: Packet, now_ms: int) -> list[Output]:
        """A packet arrived, in the order of its connection."""
        outputs: list[Output] = []
        session = self._sessions.get(connection)
        if session is None:
            if connection in self._arriving:
                self._on_first_packet(connection, packet, now_ms, outputs)
            return outputs
        session.last_received_ms = now_ms
        handler = self._handlers.get(type(packet))
        try:
            if handler is None:  # 3.1.0: a second CONNECT; or a packet that only a server sends
                raise protocol_error(f"{type(packet).__name__} from a connected client")
            handler(session, packet, now_ms, outputs)
        except PacketError as error:
            self._disconnect(session, error.reason, now_ms, outputs)
        self._close_overflowed(now_ms, outputs)
        return outputs

    def malformed(self, connection: int, error: PacketError, now_ms: int) -> list[Output]:
        """The connection's bytes have no meaning: it is closed, and nobody else is (4.13)."""
        outputs: list[Output] = []
        self.statistics.malformed_packets += 1
        session = self._sessions.get(connection)
        if session is not None:
            self._disconnect(session, error.reason, now_ms, outputs)
        elif connection in self._arriving:
            self._refuse(connection, outputs)
        self._close_overflowed(now_ms, outputs)
        return outputs

    def lost(self, connection: int, now_ms: int) -> list[Output]:
        """The network connection ended without DISCONNECT: the will is published (3.1.2.5)."""
        outputs: list[Output] = []
        self._arriving.pop(connection, None)
        session = self._sessions.get(connection)
        if session is not None:
            self._forget(session, now_ms, outputs, publish_will=True)
        self._close_overflowed(now_ms, outputs)
        return outputs

    def congested(self, connection: int) -> None:
        """The shell's buffer for this client is above its high-water mark: write no more."""
        session = self._sessions.get(connection)
        if session is not None:
            session.writable = False

    def relieved(self, connection: int, now_ms: int) -> list[Output]:
        """The buffer has drained: what waited goes out."""
        outputs: list[Output] = []
        session = self._sessions.get(connection)
        if session is not None:
            session.writable = True
            self._delivery.send_waiting(session, now_ms, outputs)
        return outputs

    def tick(self, now_ms: int) -> list[Output]:
        """Time passed: cuts off who has been silent for too long."""
        outputs: list[Output] = []
        for connection in self._deadlines.take_due(now_ms):
            session = self._sessions.get(connection)
            if session is None:
                if connection in self._arriving:
                    self._refuse(connection, outputs)
                continue
            due_ms = _keep_alive_due_ms(session)
            if due_ms is None:
                continue
            if due_ms > now_ms:
                self._deadlines.add(due_ms, connection)
            else:
                self._disconnect(session, ReasonCode.KEEP_ALIVE_TIMEOUT, now_ms, outputs)
        self._close_overflowed(now_ms, outputs)
        return outputs

    def expel(self, identity: str, now_ms: int, *, clears: str = "") -> list[Output]:
        """Ends every connection of an identity; whether it may come back is the policy's matter.

        What is retained on the topic ``clears`` goes with it, its will included.
        """
        outputs: list[Output] = []
        for session in [item for item in self._sessions.values() if item.identity == identity]:
            self._disconnect(session, ReasonCode.ADMINISTRATIVE_ACTION, now_ms, outputs)
        self._close_overflowed(now_ms, outputs)
        self._exchange.retained.clear(clears)
        return outputs

    def shut_down(self, now_ms: int) -> list[Output]:
        """Tells every client and closes it. Wills are not published: nobody is left to read."""
        outputs: list[Output] = []
        for session in self._sessions.values():
            self._exchange.leave(session, now_ms, outputs, publish_will=False)
            self._say_goodbye(session, ReasonCode.SERVER_SHUTTING_DOWN, outputs)
        outputs.extend(Close(connection) for connection in self._arriving)
        self._sessions.clear()
        self._session_of_client.clear()
        self._arriving.clear()
        return outputs

    # -- connecting and leaving --------------------------------------------------------------

    def _on_first_packet(
        self, connection: int, packet: Packet, now_ms: int, outputs: list[Output]
    ) -> None:
        if not isinstance(packet, Connect):  # 3.1.0: CONNECT comes first
            self._refuse(connection, outputs)
            return
        arrival = Arrival(
            connection=connection,
            certificate=self._arriving[connection],
            assigned_client_id=f"{self._assigned_client_id_prefix}{connection}",
            connections=len(self._sessions),
            now_ms=now_ms,
        )
        session = judge(packet, arrival, self.limits, self._policy)
        if isinstance(session, ConnAck):
            outputs.append(Send(connection, session, packet.version))
            self._refuse(connection, outputs)
            return
        del self._arriving[connection]
        # 3.1.4: the older connection with this identifier is closed before the new one is told.
        older = self._session_of_client.get(session.client_id)
        if older is not None:
            self._disconnect(older, ReasonCode.SESSION_TAKEN_OVER, now_ms, outputs)
        self._sessions[connection] = self._session_of_client[session.client_id] = session
        due_ms = _keep_alive_due_ms(session)
        if due_ms is not None:
            self._deadlines.add(due_ms, connection)
        self.statistics.connections_accepted += 1
        outputs.append(Send(connection, welcome(packet, session, self.limits), session.version))
        self._close_overflowed(now_ms, outputs)

    def _refuse(self, connection: int, outputs: list[Output]) -> None:
        """Closes a connection that has no session."""
        del self._arriving[connection]
        self.statistics.connections_refused += 1
        outputs.append(Close(connection))

    def _on_disconnect(
        self, session: Session, packet: Disconnect, now_ms: int, outputs: list[Output]
    ) -> None:
        # 3.14.4: a normal disconnection discards the will, any other reason publishes it.
        publish_will = packet.reason is not ReasonCode.SUCCESS
        self._forget(session, now_ms, outputs, publish_will=publish_will)
        outputs.append(Close(session.connection))

    def _disconnect(
        self, session: Session, reason: ReasonCode, now_ms: int, outputs: list[Output]
    ) -> None:
        """The broker ends a connection: DISCONNECT, close, will (4.13)."""
        self._say_goodbye(session, reason, outputs)
        self._forget(session, now_ms, outputs, publish_will=True)

    def _say_goodbye(self, session: Session, reason: ReasonCode, outputs: list[Output]) -> None:
        if session.version == MQTT_5:  # MQTT 3.1.1 knows no DISCONNECT from a server
            if reason not in DISCONNECT_CODES:
                reason = ReasonCode.PROTOCOL_ERROR
            outputs.append(Send(session.connection, Disconnect(reason), session.version))
        outputs.append(Close(session.connection))

    def _forget(
        self, session: Session, now_ms: int, outputs: list[Output], *, publish_will: bool
    ) -> None:
        del self._sessions[session.connection]
        del self._session_of_client[session.client_id]
        self._exchange.leave(session, now_ms, outputs, publish_will=publish_will)

    def _close_overflowed(self, now_ms: int, outputs: list[Output]) -> None:
        """Ends those whose queue ran over; their wills may make others run over in turn."""
        while self._delivery.overflowed:
            session = self._delivery.overflowed.pop()
            if session.connection in self._sessions:
                self._disconnect(session, ReasonCode.QUOTA_EXCEEDED, now_ms, outputs)

    def _on_pingreq(
        self, session: Session, packet: PingReq, now_ms: int, outputs: list[Output]
    ) -> None:
        outputs.append(Send(session.connection, PingResp(), session.version))


def _keep_alive_due_ms(session: Session) -> int | None:
    """3.1.2.10: one and a half times the keep-alive without a packet; None: never."""
    if session.keep_alive_ms == 0:
        return None
    return session.last_received_ms + session.keep_alive_ms * 3 // 2

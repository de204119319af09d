"""CONNECT, judged (sections 3.1 and 3.2).

Decides whether a client gets in, and what the broker tells it about its own limits. Leaves out
the table of sessions, and so the takeover of a client identifier (``core``).
"""

from __future__ import annotations

from dataclasses import dataclass

from fleet_server.broker.errors import PacketError
from fleet_server.broker.limits import Limits
from fleet_server.broker.packet_types import MQTT_3_1_1, MQTT_5
from fleet_server.broker.packets import ConnAck, Connect
from fleet_server.broker.policy import PeerCertificate, Policy
from fleet_server.broker.properties import Properties
from fleet_server.broker.reason_codes import ReasonCode
from fleet_server.broker.sessions import Session
from fleet_server.broker.topics import check_topic_name
from fleet_server.broker.wire_types import MAX_VARIABLE_BYTE_INTEGER

_LARGEST_PACKET_BYTES = 5 + MAX_VARIABLE_BYTE_INTEGER


@dataclass(frozen=True, slots=True)
class Arrival:
    """What the shell and the core know of a connection besides its CONNECT."""

    connection: int
    certificate: PeerCertificate | None
    assigned_client_id: str  # for a client that brings none
    connections: int  # those that are connected already
    now_ms: int


def judge(connect: Connect, arrival: Arrival, limits: Limits, policy: Policy) -> Session | ConnAck:
    """A session for the client, or the CONNACK that refuses it.

    The checks, in order: method, identifier, room, identity, will.
    """
    # 1. 4.12: enhanced authentication is not offered.
    if connect.properties.authentication_method is not None:
        return ConnAck(reason=ReasonCode.BAD_AUTHENTICATION_METHOD)
    # 2. 3.1.3.1; MQTT 3.1.1 allows an empty identifier with Clean Session only.
    if len(connect.client_id.encode()) > limits.max_client_id_bytes or (
        not connect.client_id and connect.version == MQTT_3_1_1 and not connect.clean_start
    ):
        return ConnAck(reason=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
    # 3. 3.2.2.2
    if arrival.connections >= limits.max_connections:
        return ConnAck(reason=ReasonCode.SERVER_BUSY)
    # 4. 4.12
    identity = policy.authenticate(connect, arrival.certificate)
    if isinstance(identity, ReasonCode):
        return ConnAck(reason=identity)
    # 5. 3.1.3.3
    if connect.will is not None:
        try:
            check_topic_name(connect.will.topic, limits)
        except PacketError as error:
            return ConnAck(reason=error.reason)
        if not policy.may_publish(identity, connect.will.topic):
            return ConnAck(reason=ReasonCode.NOT_AUTHORIZED)
    properties = connect.properties
    return Session(
        connection=arrival.connection,
        client_id=connect.client_id or arrival.assigned_client_id,
        identity=identity,
        version=connect.version,
        will=connect.will,
        keep_alive_ms=_keep_alive_s(connect, limits) * 1000,
        send_quota=min(properties.receive_maximum or 0xFFFF, limits.max_in_flight),
        maximum_packet_size_bytes=properties.maximum_packet_size or _LARGEST_PACKET_BYTES,
        last_received_ms=arrival.now_ms,
    )


def _keep_alive_s(connect: Connect, limits: Limits) -> int:
    """3.2.2.3.14: the broker's own limit replaces a longer keep-alive, and none at all.

    MQTT 3.1.1 has no way to tell the client, so what it asks for holds.
    """
    if connect.version == MQTT_3_1_1:
        return connect.keep_alive_s
    if 0 < connect.keep_alive_s <= limits.server_keep_alive_s:
        return connect.keep_alive_s
    return limits.server_keep_alive_s


def welcome(connect: Connect, session: Session, limits: Limits) -> ConnAck:
    """The CONNACK of an accepted client, with what the broker does not do (3.2.2.3)."""
    if connect.version != MQTT_5:
        return ConnAck()
    keep_alive_s = session.keep_alive_ms // 1000
    return ConnAck(
        properties=Properties(
            session_expiry_interval=0,  # no session outlives its connection
            receive_maximum=limits.receive_maximum,
            maximum_packet_size=limits.max_packet_size_bytes,
            topic_alias_maximum=0,
            server_keep_alive=None if keep_alive_s == connect.keep_alive_s else keep_alive_s,
            assigned_client_identifier=None if connect.client_id else session.client_id,
        )
    )

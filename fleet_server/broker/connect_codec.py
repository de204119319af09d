"""CONNECT and CONNACK as bytes (sections 3.1 and 3.2).

Decides which of the two is well formed; they are the packets with a structure of their own.
Leaves out the other packets (``codec``) and who gets in (``connecting``).
"""

from __future__ import annotations

from fleet_server.broker.errors import PacketError
from fleet_server.broker.packet_types import MQTT_3_1_1, MQTT_5, PacketType
from fleet_server.broker.packets import ConnAck, Connect, Will
from fleet_server.broker.properties import NO_PROPERTIES, decode_properties, encode_properties
from fleet_server.broker.reason_codes import (
    CONNACK_3_1_1,
    CONNACK_CODES,
    RETURN_CODE_3_1_1,
    ReasonCode,
)
from fleet_server.broker.wire_types import (
    Reader,
    encode_binary,
    encode_integer,
    encode_string,
    frame,
    malformed,
    read_reason,
)

_PROTOCOL_NAME = b"\x00\x04MQTT"


def decode_connect(reader: Reader, _version: int) -> Connect:
    if reader.take(6) != _PROTOCOL_NAME:
        raise PacketError(ReasonCode.UNSUPPORTED_PROTOCOL_VERSION, "the protocol is not MQTT")
    version = reader.byte()
    if version not in (MQTT_3_1_1, MQTT_5):
        raise PacketError(ReasonCode.UNSUPPORTED_PROTOCOL_VERSION, f"protocol level {version}")
    flags = reader.byte()
    will_flag, will_qos, will_retain = bool(flags & 4), flags >> 3 & 3, bool(flags & 0x20)
    if flags & 1:
        raise malformed("the reserved connect flag is set")  # 3.1.2.3
    if will_qos == 3 or (not will_flag and (will_qos or will_retain)):
        raise malformed("will flags that contradict each other")  # 3.1.2.6, 3.1.2.7
    if version == MQTT_3_1_1 and flags & 0xC0 == 0x40:
        raise malformed("a password without a user name")  # MQTT 3.1.1, 3.1.2.9
    keep_alive_s = reader.two_bytes()
    properties = NO_PROPERTIES
    if version == MQTT_5:
        properties = decode_properties(reader, PacketType.CONNECT)
    client_id = reader.string()
    will = None
    if will_flag:
        will_properties = NO_PROPERTIES
        if version == MQTT_5:
            will_properties = decode_properties(reader, PacketType.WILL)
        will = Will(reader.string(), reader.binary(), will_qos, will_retain, will_properties)
    username = reader.string() if flags & 0x80 else None
    password = reader.binary() if flags & 0x40 else None
    return Connect(
        client_id, version, bool(flags & 2), keep_alive_s, username, password, will, properties
    )


def encode_connect(packet: Connect, _version: int) -> bytes:
    version, will = packet.version, packet.will
    flags = packet.clean_start << 1
    parts = [encode_integer(packet.keep_alive_s, 2)]
    if version == MQTT_5:
        parts.append(encode_properties(packet.properties))
    parts.append(encode_string(packet.client_id))
    if will is not None:
        flags |= 4 | will.qos << 3 | will.retain << 5
        if version == MQTT_5:
            parts.append(encode_properties(will.properties))
        parts += (encode_string(will.topic), encode_binary(will.payload))
    if packet.username is not None:
        flags |= 0x80
        parts.append(encode_string(packet.username))
    if packet.password is not None:
        flags |= 0x40
        parts.append(encode_binary(packet.password))
    return frame(PacketType.CONNECT << 4, _PROTOCOL_NAME, bytes((version, flags)), *parts)


def decode_connack(reader: Reader, version: int) -> ConnAck:
    flags = reader.byte()
    if flags & 0xFE:
        raise malformed("reserved acknowledge flags are set")  # 3.2.2.1
    if version == MQTT_5:
        reason = read_reason(reader, CONNACK_CODES)
        return ConnAck(bool(flags), reason, decode_properties(reader, PacketType.CONNACK))
    code = reader.byte()
    if code not in CONNACK_3_1_1:
        raise malformed(f"return code {code}")
    return ConnAck(bool(flags), CONNACK_3_1_1[code])


def encode_connack(packet: ConnAck, version: int) -> bytes:
    flags = bytes((packet.session_present,))
    if version == MQTT_5:
        tail = bytes((packet.reason,)) + encode_properties(packet.properties)
    else:
        unavailable = RETURN_CODE_3_1_1[ReasonCode.SERVER_UNAVAILABLE]
        tail = bytes((RETURN_CODE_3_1_1.get(packet.reason, unavailable),))
    return frame(PacketType.CONNACK << 4, flags, tail)

"""Control packets to bytes and back (chapters 2 and 3), for MQTT 5 and 3.1.1.

Decides what is well formed: ``encode`` and ``decode`` turn any bytes into a packet or a
``PacketError`` with its reason code. Leaves out finding a packet's borders in a stream
(``decoder``) and whether a packet is allowed now (``core``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fleet_server.broker.connect_codec import (
    decode_connack,
    decode_connect,
    encode_connack,
    encode_connect,
)
from fleet_server.broker.packet_types import MQTT_3_1_1, MQTT_5, PacketType
from fleet_server.broker.packets import (
    Auth,
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
    RetainHandling,
    SubAck,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
)
from fleet_server.broker.properties import (
    NO_PROPERTIES,
    Properties,
    decode_properties,
    encode_properties,
)
from fleet_server.broker.reason_codes import (
    AUTH_CODES,
    DISCONNECT_CODES,
    PUBACK_CODES,
    PUBREL_CODES,
    SUBACK_CODES,
    UNSUBACK_CODES,
    ReasonCode,
)
from fleet_server.broker.wire_types import (
    Reader,
    decode_string,
    encode_string,
    encode_variable_byte_integer,
    frame,
    malformed,
    protocol_error,
    read_reason,
)


def decode(first_byte: int, body: bytes, version: int) -> Packet:
    """One packet from its first byte and the bytes after the remaining length.

    ``version`` is the one that CONNECT agreed on; CONNECT itself carries its own.
    Raises ``PacketError``.
    """
    kind = first_byte >> 4
    if kind == PacketType.PUBLISH:
        return _decode_publish(first_byte, body, version)
    decoder = _DECODERS.get(kind)
    if decoder is None or (kind == PacketType.AUTH and version != MQTT_5):
        raise malformed(f"packet type {kind} does not exist")
    # Table 2-2: the flags of every other packet are fixed.
    flags = 0b0010 if kind in _FLAGGED else 0
    if first_byte & 0x0F != flags:
        raise malformed(f"flags {first_byte & 0x0F:04b} in {PacketType(kind).name}")
    reader = Reader(body)
    packet = decoder(reader, version)
    reader.expect_end()
    return packet


def encode(packet: Packet, version: int) -> bytes:
    """The packet's bytes. Raises ``PacketError`` where a value does not fit its field."""
    return _ENCODERS[type(packet)](packet, version)


# -- PUBLISH, the hot path (section 3.3) ---------------------------------------------------------


def _decode_publish(first_byte: int, body: bytes, version: int) -> Publish:
    qos = (first_byte >> 1) & 3
    if qos == 3 or (qos == 0 and first_byte & 0x08):
        raise malformed("QoS 3, or DUP on QoS 0")  # 3.3.1.1, 3.3.1.2
    size_bytes = len(body)
    if size_bytes < 2:
        raise malformed("a PUBLISH without a topic name")
    position = 2 + (body[0] << 8 | body[1])
    if position > size_bytes:
        raise malformed("the topic name ends outside the packet")
    topic = decode_string(body[2:position])
    packet_id = 0
    if qos:
        if position + 2 > size_bytes:
            raise malformed("a PUBLISH without its packet identifier")
        packet_id = body[position] << 8 | body[position + 1]
        if packet_id == 0:
            raise malformed("packet identifier 0")  # 2.2.1
        position += 2
    properties = NO_PROPERTIES
    if version == MQTT_5:
        if position < size_bytes and body[position] == 0:
            position += 1
        else:
            reader = Reader(body, position)
            properties = decode_properties(reader, PacketType.PUBLISH)
            position = reader.position
    retain, dup = bool(first_byte & 1), bool(first_byte & 8)
    return Publish(topic, body[position:], qos, retain, dup, packet_id, properties)


def encode_publish_parts(publish: Publish, version: int) -> tuple[bytes, bytes]:
    """The bytes of a PUBLISH before and after its packet identifier.

    With QoS 0 there is no identifier and the two parts simply follow each other. A fan-out
    encodes these parts once and puts each receiver's identifier between them.
    """
    first_byte = 0x30 | publish.qos << 1 | publish.retain | publish.dup << 3
    topic = encode_string(publish.topic)
    if version == MQTT_5:
        rest = encode_properties(publish.properties) + publish.payload
    else:
        rest = publish.payload
    size_bytes = len(topic) + (2 if publish.qos else 0) + len(rest)
    return bytes((first_byte,)) + encode_variable_byte_integer(size_bytes) + topic, rest


def _encode_publish(publish: Publish, version: int) -> bytes:
    before, after = encode_publish_parts(publish, version)
    if publish.qos == 0:
        return before + after
    return before + _encode_packet_id(publish.packet_id) + after


# -- acknowledgements (sections 3.4 to 3.7) ------------------------------------------------------


def _encode_packet_id(packet_id: int) -> bytes:
    if not 1 <= packet_id <= 0xFFFF:
        raise malformed(f"packet identifier {packet_id}")
    return packet_id.to_bytes(2, "big")


def _read_packet_id(reader: Reader) -> int:
    packet_id = reader.two_bytes()
    if packet_id == 0:
        raise malformed("packet identifier 0")
    return packet_id


def _read_tail(
    reader: Reader, version: int, kind: PacketType, permitted: frozenset[int]
) -> tuple[ReasonCode, Properties]:
    """Reason code and properties, both of which may be left off at the end (3.4.2.1)."""
    if version != MQTT_5 or reader.at_end():
        return ReasonCode.SUCCESS, NO_PROPERTIES
    reason = read_reason(reader, permitted)
    if reader.at_end():
        return reason, NO_PROPERTIES
    return reason, decode_properties(reader, kind)


def _encode_tail(reason: ReasonCode, properties: Properties, version: int) -> bytes:
    if version != MQTT_5 or (reason == ReasonCode.SUCCESS and properties == NO_PROPERTIES):
        return b""
    if properties == NO_PROPERTIES:
        return bytes((reason,))
    return bytes((reason,)) + encode_properties(properties)


def _acknowledgement(
    kind: PacketType, build: Callable[..., Any], permitted: frozenset[int]
) -> tuple[Callable[[Reader, int], Any], Callable[[Any, int], bytes]]:
    """PUBACK, PUBREC, PUBREL and PUBCOMP differ in type, flags and reason codes only."""
    first_byte = kind << 4 | (0b0010 if kind == PacketType.PUBREL else 0)
    short = bytes((first_byte, 2))

    def read(reader: Reader, version: int) -> Any:
        packet_id = _read_packet_id(reader)
        if reader.at_end():
            return build(packet_id)
        return build(packet_id, *_read_tail(reader, version, kind, permitted))

    def write(packet: Any, version: int) -> bytes:
        identifier = _encode_packet_id(packet.packet_id)
        tail = _encode_tail(packet.reason, packet.properties, version)
        return frame(first_byte, identifier, tail) if tail else short + identifier

    return read, write


# -- SUBSCRIBE, UNSUBSCRIBE and their answers (sections 3.8 to 3.11) -----------------------------


def _read_properties(reader: Reader, version: int, kind: PacketType) -> Properties:
    return decode_properties(reader, kind) if version == MQTT_5 else NO_PROPERTIES


def _write_properties(properties: Properties, version: int) -> bytes:
    return encode_properties(properties) if version == MQTT_5 else b""


def _decode_subscribe(reader: Reader, version: int) -> Subscribe:
    packet_id = _read_packet_id(reader)
    properties = _read_properties(reader, version, PacketType.SUBSCRIBE)
    requests = []
    while not reader.at_end():
        topic_filter, options = reader.string(), reader.byte()
        qos, handling = options & 3, options >> 4 & 3
        # 3.8.3.1; MQTT 3.1.1 reserves all bits but the QoS.
        if qos == 3 or handling == 3 or options & (0xC0 if version == MQTT_5 else 0xFC):
            raise malformed(f"subscription options 0x{options:02x}")
        no_local, as_published = bool(options & 4), bool(options & 8)
        requests.append(
            SubscriptionRequest(topic_filter, qos, no_local, as_published, RetainHandling(handling))
        )
    if not requests:
        raise protocol_error("a SUBSCRIBE without a topic filter")
    return Subscribe(packet_id, tuple(requests), properties)


def _encode_subscribe(packet: Subscribe, version: int) -> bytes:
    parts = [
        _encode_packet_id(packet.packet_id),
        _write_properties(packet.properties, version),
    ]
    for request in packet.requests:
        options = request.qos | request.no_local << 2 | request.retain_as_published << 3
        options |= request.retain_handling << 4
        parts += (encode_string(request.topic_filter), bytes((options,)))
    return frame(PacketType.SUBSCRIBE << 4 | 2, *parts)


def _decode_suback(reader: Reader, version: int) -> SubAck:
    packet_id = _read_packet_id(reader)
    properties = _read_properties(reader, version, PacketType.SUBACK)
    reasons = []
    while not reader.at_end():
        reasons.append(read_reason(reader, SUBACK_CODES))
    return SubAck(packet_id, tuple(reasons), properties)


def _encode_suback(packet: SubAck, version: int) -> bytes:
    reasons = packet.reasons
    if version == MQTT_3_1_1:  # it knows one failure only
        reasons = tuple(
            ReasonCode.UNSPECIFIED_ERROR if reason.is_failure else reason for reason in reasons
        )
    return frame(
        PacketType.SUBACK << 4,
        _encode_packet_id(packet.packet_id),
        _write_properties(packet.properties, version),
        bytes(reasons),
    )


def _decode_unsubscribe(reader: Reader, version: int) -> Unsubscribe:
    packet_id = _read_packet_id(reader)
    properties = _read_properties(reader, version, PacketType.UNSUBSCRIBE)
    topic_filters = []
    while not reader.at_end():
        topic_filters.append(reader.string())
    if not topic_filters:
        raise protocol_error("an UNSUBSCRIBE without a topic filter")
    return Unsubscribe(packet_id, tuple(topic_filters), properties)


def _encode_unsubscribe(packet: Unsubscribe, version: int) -> bytes:
    return frame(
        PacketType.UNSUBSCRIBE << 4 | 2,
        _encode_packet_id(packet.packet_id),
        _write_properties(packet.properties, version),
        *(encode_string(topic_filter) for topic_filter in packet.topic_filters),
    )


def _decode_unsuback(reader: Reader, version: int) -> UnsubAck:
    packet_id = _read_packet_id(reader)
    if version != MQTT_5:
        return UnsubAck(packet_id)
    properties = decode_properties(reader, PacketType.UNSUBACK)
    reasons = []
    while not reader.at_end():
        reasons.append(read_reason(reader, UNSUBACK_CODES))
    return UnsubAck(packet_id, tuple(reasons), properties)


def _encode_unsuback(packet: UnsubAck, version: int) -> bytes:
    return frame(
        PacketType.UNSUBACK << 4,
        _encode_packet_id(packet.packet_id),
        _write_properties(packet.properties, version),
        bytes(packet.reasons) if version == MQTT_5 else b"",
    )


# -- PINGREQ, PINGRESP, DISCONNECT and AUTH (sections 3.12 to 3.15) ------------------------------


def _decode_disconnect(reader: Reader, version: int) -> Disconnect:
    return Disconnect(*_read_tail(reader, version, PacketType.DISCONNECT, DISCONNECT_CODES))


def _encode_disconnect(packet: Disconnect, version: int) -> bytes:
    tail = _encode_tail(packet.reason, packet.properties, version)
    return frame(PacketType.DISCONNECT << 4, tail)


def _decode_auth(reader: Reader, version: int) -> Auth:
    return Auth(*_read_tail(reader, version, PacketType.AUTH, AUTH_CODES))


def _encode_auth(packet: Auth, version: int) -> bytes:
    return frame(PacketType.AUTH << 4, _encode_tail(packet.reason, packet.properties, version))


_PUBACK = _acknowledgement(PacketType.PUBACK, PubAck, PUBACK_CODES)
_PUBREC = _acknowledgement(PacketType.PUBREC, PubRec, PUBACK_CODES)
_PUBREL = _acknowledgement(PacketType.PUBREL, PubRel, PUBREL_CODES)
_PUBCOMP = _acknowledgement(PacketType.PUBCOMP, PubComp, PUBREL_CODES)
_FLAGGED = frozenset({PacketType.PUBREL, PacketType.SUBSCRIBE, PacketType.UNSUBSCRIBE})
_DECODERS: dict[int, Callable[[Reader, int], Packet]] = {
    PacketType.CONNECT: decode_connect,
    PacketType.CONNACK: decode_connack,
    PacketType.PUBACK: _PUBACK[0],
    PacketType.PUBREC: _PUBREC[0],
    PacketType.PUBREL: _PUBREL[0],
    PacketType.PUBCOMP: _PUBCOMP[0],
    PacketType.SUBSCRIBE: _decode_subscribe,
    PacketType.SUBACK: _decode_suback,
    PacketType.UNSUBSCRIBE: _decode_unsubscribe,
    PacketType.UNSUBACK: _decode_unsuback,
    PacketType.PINGREQ: lambda _reader, _version: PingReq(),
    PacketType.PINGRESP: lambda _reader, _version: PingResp(),
    PacketType.DISCONNECT: _decode_disconnect,
    PacketType.AUTH: _decode_auth,
}
_ENCODERS: dict[type[Any], Callable[[Any, int], bytes]] = {
    Connect: encode_connect,
    ConnAck: encode_connack,
    Publish: _encode_publish,
    PubAck: _PUBACK[1],
    PubRec: _PUBREC[1],
    PubRel: _PUBREL[1],
    PubComp: _PUBCOMP[1],
    Subscribe: _encode_subscribe,
    SubAck: _encode_suback,
    Unsubscribe: _encode_unsubscribe,
    UnsubAck: _encode_unsuback,
    PingReq: lambda _packet, _version: b"\xc0\x00",
    PingResp: lambda _packet, _version: b"\xd0\x00",
    Disconnect: _encode_disconnect,
    Auth: _encode_auth,
}

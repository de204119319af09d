"""MQTT 5 properties (section 2.2.2): one table of what exists, where, and how it is encoded.

Decides identifiers, types, the packets that may carry each property and the values that the
standard forbids. Leaves out what a property means.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Any, NamedTuple

from msgspec import Struct

from fleet_server.broker.packet_types import PacketType
from fleet_server.broker.wire_types import (
    Reader,
    encode_binary,
    encode_integer,
    encode_string,
    encode_string_pair,
    encode_variable_byte_integer,
    malformed,
    protocol_error,
)


class Properties(Struct, frozen=True, kw_only=True):
    """All properties of a packet; ``None`` or an empty tuple means absent."""

    payload_format_indicator: int | None = None
    message_expiry_interval: int | None = None
    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    subscription_identifiers: tuple[int, ...] = ()
    session_expiry_interval: int | None = None
    assigned_client_identifier: str | None = None
    server_keep_alive: int | None = None
    authentication_method: str | None = None
    authentication_data: bytes | None = None
    request_problem_information: int | None = None
    will_delay_interval: int | None = None
    request_response_information: int | None = None
    response_information: str | None = None
    server_reference: str | None = None
    reason_string: str | None = None
    receive_maximum: int | None = None
    topic_alias_maximum: int | None = None
    topic_alias: int | None = None
    maximum_qos: int | None = None
    retain_available: int | None = None
    user_properties: tuple[tuple[str, str], ...] = ()
    maximum_packet_size: int | None = None
    wildcard_subscription_available: int | None = None
    subscription_identifier_available: int | None = None
    shared_subscription_available: int | None = None


NO_PROPERTIES = Properties()


class Kind(Enum):
    """The type of a property's value, and whether zero or anything but 0 and 1 is an error."""

    FLAG = auto()
    TWO_BYTES = auto()
    TWO_BYTES_NOT_ZERO = auto()
    FOUR_BYTES = auto()
    FOUR_BYTES_NOT_ZERO = auto()
    VARIABLE_BYTE_INTEGER_NOT_ZERO = auto()
    STRING = auto()
    BINARY = auto()
    STRING_PAIR = auto()


class Rule(NamedTuple):
    identifier: int
    field: str
    kind: Kind
    packets: frozenset[PacketType]
    repeats: frozenset[PacketType] = frozenset()


def _in(*packets: PacketType) -> frozenset[PacketType]:
    return frozenset(packets)


_P = PacketType
_MESSAGE = _in(_P.PUBLISH, _P.WILL)
_ANSWERS = _in(
    _P.CONNACK, _P.PUBACK, _P.PUBREC, _P.PUBREL, _P.PUBCOMP, _P.SUBACK, _P.UNSUBACK,
    _P.DISCONNECT, _P.AUTH,
)  # fmt: skip
_EVERYWHERE = frozenset(_P) - _in(_P.PINGREQ, _P.PINGRESP)
_AUTHENTICATION = _in(_P.CONNECT, _P.CONNACK, _P.AUTH)
_IDENTIFIED = _in(_P.PUBLISH, _P.SUBSCRIBE)
_SESSION = _in(_P.CONNECT, _P.CONNACK, _P.DISCONNECT)
_BOTH_CONNECTS = _in(_P.CONNECT, _P.CONNACK)
_REFERENCE = _in(_P.CONNACK, _P.DISCONNECT)
_PUBLISH, _WILL, _CONNECT, _CONNACK = (
    _in(_P.PUBLISH), _in(_P.WILL), _in(_P.CONNECT), _in(_P.CONNACK)
)  # fmt: skip

# Table 2-4. A subscription identifier may repeat in PUBLISH only (section 3.8.2.1.2).
RULES = (
    Rule(0x01, "payload_format_indicator", Kind.FLAG, _MESSAGE),
    Rule(0x02, "message_expiry_interval", Kind.FOUR_BYTES, _MESSAGE),
    Rule(0x03, "content_type", Kind.STRING, _MESSAGE),
    Rule(0x08, "response_topic", Kind.STRING, _MESSAGE),
    Rule(0x09, "correlation_data", Kind.BINARY, _MESSAGE),
    Rule(0x0B, "subscription_identifiers", Kind.VARIABLE_BYTE_INTEGER_NOT_ZERO, _IDENTIFIED,
         _PUBLISH),
    Rule(0x11, "session_expiry_interval", Kind.FOUR_BYTES, _SESSION),
    Rule(0x12, "assigned_client_identifier", Kind.STRING, _CONNACK),
    Rule(0x13, "server_keep_alive", Kind.TWO_BYTES, _CONNACK),
    Rule(0x15, "authentication_method", Kind.STRING, _AUTHENTICATION),
    Rule(0x16, "authentication_data", Kind.BINARY, _AUTHENTICATION),
    Rule(0x17, "request_problem_information", Kind.FLAG, _CONNECT),
    Rule(0x18, "will_delay_interval", Kind.FOUR_BYTES, _WILL),
    Rule(0x19, "request_response_information", Kind.FLAG, _CONNECT),
    Rule(0x1A, "response_information", Kind.STRING, _CONNACK),
    Rule(0x1C, "server_reference", Kind.STRING, _REFERENCE),
    Rule(0x1F, "reason_string", Kind.STRING, _ANSWERS),
    Rule(0x21, "receive_maximum", Kind.TWO_BYTES_NOT_ZERO, _BOTH_CONNECTS),
    Rule(0x22, "topic_alias_maximum", Kind.TWO_BYTES, _BOTH_CONNECTS),
    Rule(0x23, "topic_alias", Kind.TWO_BYTES, _PUBLISH),
    Rule(0x24, "maximum_qos", Kind.FLAG, _CONNACK),
    Rule(0x25, "retain_available", Kind.FLAG, _CONNACK),
    Rule(0x26, "user_properties", Kind.STRING_PAIR, _EVERYWHERE, _EVERYWHERE),
    Rule(0x27, "maximum_packet_size", Kind.FOUR_BYTES_NOT_ZERO, _BOTH_CONNECTS),
    Rule(0x28, "wildcard_subscription_available", Kind.FLAG, _CONNACK),
    Rule(0x29, "subscription_identifier_available", Kind.FLAG, _CONNACK),
    Rule(0x2A, "shared_subscription_available", Kind.FLAG, _CONNACK),
)  # fmt: skip
_RULE_BY_IDENTIFIER = {rule.identifier: rule for rule in RULES}
_TUPLES = frozenset({"subscription_identifiers", "user_properties"})
_NOT_ZERO = frozenset(
    {Kind.TWO_BYTES_NOT_ZERO, Kind.FOUR_BYTES_NOT_ZERO, Kind.VARIABLE_BYTE_INTEGER_NOT_ZERO}
)
_READ: dict[Kind, Callable[[Reader], Any]] = {
    Kind.FLAG: Reader.byte,
    Kind.TWO_BYTES: Reader.two_bytes,
    Kind.TWO_BYTES_NOT_ZERO: Reader.two_bytes,
    Kind.FOUR_BYTES: Reader.four_bytes,
    Kind.FOUR_BYTES_NOT_ZERO: Reader.four_bytes,
    Kind.VARIABLE_BYTE_INTEGER_NOT_ZERO: Reader.variable_byte_integer,
    Kind.STRING: Reader.string,
    Kind.BINARY: Reader.binary,
    Kind.STRING_PAIR: Reader.string_pair,
}
_WRITE: dict[Kind, Callable[[Any], bytes]] = {
    Kind.FLAG: lambda value: encode_integer(value, 1),
    Kind.TWO_BYTES: lambda value: encode_integer(value, 2),
    Kind.TWO_BYTES_NOT_ZERO: lambda value: encode_integer(value, 2),
    Kind.FOUR_BYTES: lambda value: encode_integer(value, 4),
    Kind.FOUR_BYTES_NOT_ZERO: lambda value: encode_integer(value, 4),
    Kind.VARIABLE_BYTE_INTEGER_NOT_ZERO: encode_variable_byte_integer,
    Kind.STRING: encode_string,
    Kind.BINARY: encode_binary,
    Kind.STRING_PAIR: encode_string_pair,
}


def decode_properties(reader: Reader, packet: PacketType) -> Properties:
    """Reads the property length and that many bytes. Raises ``PacketError``."""
    size_bytes = reader.variable_byte_integer()
    if size_bytes == 0:
        return NO_PROPERTIES
    section = Reader(reader.take(size_bytes))
    values: dict[str, Any] = {}
    while not section.at_end():
        rule = _RULE_BY_IDENTIFIER.get(section.variable_byte_integer())
        if rule is None or packet not in rule.packets:
            # 2.2.2.2: an identifier that is not valid for its packet type is malformed.
            raise malformed(f"a property that {packet.name} does not have")
        value = _READ[rule.kind](section)
        _check_value(rule, value)
        if rule.field in _TUPLES:
            # A list while reading: concatenating tuples would be quadratic in hostile input.
            values.setdefault(rule.field, []).append(value)
            repeated = len(values[rule.field]) > 1
        else:
            repeated = rule.field in values
            values[rule.field] = value
        if repeated and packet not in rule.repeats:
            raise protocol_error(f"{rule.field} occurs twice")
    for field in _TUPLES & values.keys():
        values[field] = tuple(values[field])
    if "authentication_data" in values and "authentication_method" not in values:
        raise protocol_error("authentication data without a method")
    return Properties(**values)


def _check_value(rule: Rule, value: object) -> None:
    if rule.kind is Kind.FLAG and value not in (0, 1):
        raise protocol_error(f"{rule.field} is neither 0 nor 1")
    if rule.kind in _NOT_ZERO and value == 0:
        raise protocol_error(f"{rule.field} is zero")


def encode_properties(properties: Properties) -> bytes:
    """The property length and the properties. Raises ``PacketError`` for what cannot be encoded."""
    if properties is NO_PROPERTIES:
        return b"\0"
    parts: list[bytes] = []
    for rule in RULES:
        value = getattr(properties, rule.field)
        if value is None:
            continue
        for item in value if rule.field in _TUPLES else (value,):
            parts += (bytes((rule.identifier,)), _WRITE[rule.kind](item))
    section = b"".join(parts)
    return encode_variable_byte_integer(len(section)) + section

"""The codec against packets it should survive and bytes it should refuse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_server.broker.codec import encode, encode_publish_parts
from fleet_server.broker.decoder import Decoder
from fleet_server.broker.errors import PacketError
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
    Will,
)
from fleet_server.broker.properties import NO_PROPERTIES, RULES, Kind, Properties
from fleet_server.broker.reason_codes import (
    AUTH_CODES,
    CONNACK_3_1_1,
    CONNACK_CODES,
    DISCONNECT_CODES,
    PUBACK_CODES,
    PUBREL_CODES,
    SUBACK_CODES,
    UNSUBACK_CODES,
    ReasonCode,
)

MAX_BYTES = 1 << 20
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
PACKET_ID = st.integers(1, 0xFFFF)
VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.FLAG: st.integers(0, 1),
    Kind.TWO_BYTES: st.integers(0, 0xFFFF),
    Kind.TWO_BYTES_NOT_ZERO: st.integers(1, 0xFFFF),
    Kind.FOUR_BYTES: st.integers(0, 0xFFFFFFFF),
    Kind.FOUR_BYTES_NOT_ZERO: st.integers(1, 0xFFFFFFFF),
    Kind.VARIABLE_BYTE_INTEGER_NOT_ZERO: st.integers(1, 268_435_455),
    Kind.STRING: TEXT,
    Kind.BINARY: st.binary(max_size=20),
    Kind.STRING_PAIR: st.tuples(TEXT, TEXT),
}


def properties(kind: PacketType) -> st.SearchStrategy[Properties]:
    """Any properties that a packet of this type may have."""
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for rule in RULES:
        if kind not in rule.packets or rule.field == "authentication_data":
            continue
        value = VALUES[rule.kind]
        if rule.field in ("user_properties", "subscription_identifiers"):
            most = 3 if kind in rule.repeats else 1
            value = st.lists(value, min_size=1, max_size=most).map(tuple)
        optional[rule.field] = value
    return st.fixed_dictionaries({}, optional=optional).map(lambda fields: Properties(**fields))


def reasons(codes: frozenset[int]) -> st.SearchStrategy[ReasonCode]:
    return st.sampled_from(sorted(codes)).map(ReasonCode)


def publishes(version: int) -> st.SearchStrategy[Publish]:
    fields = {"topic": TEXT, "payload": st.binary(max_size=300), "retain": st.booleans()}
    if version == MQTT_5:
        fields["properties"] = properties(PacketType.PUBLISH)
    return st.one_of(
        st.builds(Publish, **fields),
        st.builds(Publish, qos=st.integers(1, 2), dup=st.booleans(), packet_id=PACKET_ID, **fields),
    )


REQUESTS_5 = st.lists(
    st.builds(
        SubscriptionRequest,
        TEXT,
        st.integers(0, 2),
        st.booleans(),
        st.booleans(),
        st.sampled_from(RetainHandling),
    ),
    min_size=1,
    max_size=4,
).map(tuple)
REQUESTS_3 = st.lists(
    st.builds(SubscriptionRequest, TEXT, st.integers(0, 2)), min_size=1, max_size=4
).map(tuple)
WILLS = st.builds(
    Will, TEXT, st.binary(max_size=30), st.integers(0, 2), st.booleans(),
    properties(PacketType.WILL),
)  # fmt: skip
PACKETS_5: st.SearchStrategy[Packet] = st.one_of(
    st.builds(
        Connect,
        client_id=TEXT,
        clean_start=st.booleans(),
        keep_alive_s=st.integers(0, 0xFFFF),
        username=st.none() | TEXT,
        password=st.none() | st.binary(max_size=20),
        will=st.none() | WILLS,
        properties=properties(PacketType.CONNECT),
    ),
    st.builds(ConnAck, st.booleans(), reasons(CONNACK_CODES), properties(PacketType.CONNACK)),
    publishes(MQTT_5),
    st.builds(PubAck, PACKET_ID, reasons(PUBACK_CODES), properties(PacketType.PUBACK)),
    st.builds(PubRec, PACKET_ID, reasons(PUBACK_CODES), properties(PacketType.PUBREC)),
    st.builds(PubRel, PACKET_ID, reasons(PUBREL_CODES), properties(PacketType.PUBREL)),
    st.builds(PubComp, PACKET_ID, reasons(PUBREL_CODES), properties(PacketType.PUBCOMP)),
    st.builds(Subscribe, PACKET_ID, REQUESTS_5, properties(PacketType.SUBSCRIBE)),
    st.builds(
        SubAck,
        PACKET_ID,
        st.lists(reasons(SUBACK_CODES), max_size=4).map(tuple),
        properties(PacketType.SUBACK),
    ),
    st.builds(
        Unsubscribe,
        PACKET_ID,
        st.lists(TEXT, min_size=1, max_size=4).map(tuple),
        properties(PacketType.UNSUBSCRIBE),
    ),
    st.builds(
        UnsubAck,
        PACKET_ID,
        st.lists(reasons(UNSUBACK_CODES), max_size=4).map(tuple),
        properties(PacketType.UNSUBACK),
    ),
    st.builds(PingReq),
    st.builds(PingResp),
    st.builds(Disconnect, reasons(DISCONNECT_CODES), properties(PacketType.DISCONNECT)),
    st.builds(Auth, reasons(AUTH_CODES), properties(PacketType.AUTH)),
)
PACKETS_3: st.SearchStrategy[Packet] = st.one_of(
    st.builds(
        Connect,
        client_id=TEXT,
        version=st.just(MQTT_3_1_1),
        clean_start=st.booleans(),
        keep_alive_s=st.integers(0, 0xFFFF),
        username=TEXT,
        password=st.none() | st.binary(max_size=20),
        will=st.none()
        | st.builds(Will, TEXT, st.binary(max_size=30), st.integers(0, 2), st.booleans()),
    ),
    st.builds(ConnAck, st.booleans(), st.sampled_from(sorted(CONNACK_3_1_1.values()))),
    publishes(MQTT_3_1_1),
    st.builds(PubAck, PACKET_ID),
    st.builds(PubRec, PACKET_ID),
    st.builds(PubRel, PACKET_ID),
    st.builds(PubComp, PACKET_ID),
    st.builds(Subscribe, PACKET_ID, REQUESTS_3),
    st.builds(Unsubscribe, PACKET_ID, st.lists(TEXT, min_size=1, max_size=4).map(tuple)),
    st.builds(UnsubAck, PACKET_ID),
    st.builds(PingReq),
    st.builds(PingResp),
    st.builds(Disconnect),
)


def decode_all(data: bytes, version: int = MQTT_5, limit_bytes: int = MAX_BYTES) -> list[Packet]:
    return list(Decoder(limit_bytes, version).feed(data))


@given(PACKETS_5)
def test_mqtt_5_packet_changed_on_the_wire(packet: Packet) -> None:
    assert decode_all(encode(packet, MQTT_5)) == [packet]


@given(PACKETS_3)
def test_mqtt_3_1_1_packet_changed_on_the_wire(packet: Packet) -> None:
    assert decode_all(encode(packet, MQTT_3_1_1), MQTT_3_1_1) == [packet]


@given(st.lists(PACKETS_5, min_size=1, max_size=5), st.data())
def test_packets_cut_anywhere_by_the_network(packets: list[Packet], data: st.DataObject) -> None:
    stream = b"".join(encode(packet, MQTT_5) for packet in packets)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder = Decoder(MAX_BYTES)
    received: list[Packet] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received.extend(decoder.feed(stream[start:end]))
    assert received == packets


@given(st.binary(max_size=80), st.sampled_from([MQTT_3_1_1, MQTT_5]))
def test_arbitrary_bytes_raise_anything_but_the_one_error(data: bytes, version: int) -> None:
    try:
        decode_all(data, version)
    except PacketError as error:
        assert error.reason.is_failure


@given(PACKETS_5, st.data())
def test_damaged_packet_raises_anything_but_the_one_error(
    packet: Packet, data: st.DataObject
) -> None:
    encoded = bytearray(encode(packet, MQTT_5))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(encoded) - 1))
        encoded[position] = data.draw(st.integers(0, 255))
    try:
        decode_all(bytes(encoded))
    except PacketError as error:
        assert error.reason.is_failure


@given(publishes(MQTT_5))
def test_publish_parts_differ_from_the_whole(publish: Publish) -> None:
    before, after = encode_publish_parts(publish, MQTT_5)
    identifier = publish.packet_id.to_bytes(2, "big") if publish.qos else b""
    assert before + identifier + after == encode(publish, MQTT_5)


def test_known_bytes_of_a_publish() -> None:
    # Written down by hand from section 3.3, so that encoder and decoder cannot err together.
    publish = Publish("a/b", b"hi", 1, True, False, 10, Properties(message_expiry_interval=7))
    expected = bytes.fromhex("33 0f 0003 612f62 000a 05 02 00000007 6869")
    assert encode(publish, MQTT_5) == expected
    assert decode_all(expected) == [publish]


MALFORMED = ReasonCode.MALFORMED_PACKET
PROTOCOL = ReasonCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("00 00", MALFORMED),  # packet type 0
        ("c1 00", MALFORMED),  # flags on PINGREQ
        ("80 00", MALFORMED),  # SUBSCRIBE without its flag
        ("c0 01 00", MALFORMED),  # bytes after a PINGREQ
        ("30 ff ff ff ff", MALFORMED),  # remaining length of five bytes
        ("30 80 00", MALFORMED),  # remaining length longer than needed
        ("36 05 0001 61 0001", MALFORMED),  # QoS 3
        ("38 04 0001 61 00", MALFORMED),  # DUP on QoS 0
        ("32 06 0001 61 0000 00", MALFORMED),  # packet identifier 0
        ("30 04 0009 61 00", MALFORMED),  # topic beyond the packet
        ("30 04 0001 ff 00", MALFORMED),  # not UTF-8
        ("30 04 0001 00 00", MALFORMED),  # null character
        ("30 06 0001 61 02 27 00", MALFORMED),  # a property of CONNECT
        ("30 08 0001 61 04 01 00 01 00", PROTOCOL),  # a property twice
        ("30 06 0001 61 02 01 02", PROTOCOL),  # a flag of 2
        ("30 06 0001 61 02 0b 00", PROTOCOL),  # subscription identifier 0
        ("40 03 0001 55", MALFORMED),  # unknown reason code
        ("82 03 0001 00", PROTOCOL),  # SUBSCRIBE without a filter
        ("82 07 0001 00 0001 61 40", MALFORMED),  # reserved subscription option
        ("10 0d 0004 4d515454 05 01 0000 00 0000", MALFORMED),  # reserved connect flag
        ("10 0d 0004 4d515454 05 20 0000 00 0000", MALFORMED),  # will retain without a will
        ("10 0d 0004 4d515454 06 02 0000 00 0000", ReasonCode.UNSUPPORTED_PROTOCOL_VERSION),
        ("10 0d 0004 4d515458 05 02 0000 00 0000", ReasonCode.UNSUPPORTED_PROTOCOL_VERSION),
    ],
)
def test_malformed_packet_accepted(data: str, reason: ReasonCode) -> None:
    with pytest.raises(PacketError) as caught:
        decode_all(bytes.fromhex(data))
    assert caught.value.reason is reason


def test_oversized_packet_buffered_before_it_is_refused() -> None:
    header = encode(Publish("t", bytes(2000)), MQTT_5)[:4]
    with pytest.raises(PacketError) as caught:
        decode_all(header, limit_bytes=1000)
    assert caught.value.reason is ReasonCode.PACKET_TOO_LARGE


def test_packet_before_a_malformed_one_lost() -> None:
    received = []
    with pytest.raises(PacketError):
        for packet in Decoder(MAX_BYTES).feed(encode(PingReq(), MQTT_5) + b"\0\0"):
            received.append(packet)
    assert received == [PingReq()]


def test_version_of_connect_ignored_by_what_follows() -> None:
    connect = Connect(client_id="c", version=MQTT_3_1_1)
    publish = Publish("t", b"\x05abc")
    stream = encode(connect, MQTT_3_1_1) + encode(publish, MQTT_3_1_1)
    assert decode_all(stream) == [connect, publish]


@pytest.mark.parametrize(
    "packet",
    [
        Publish("t" * 70_000),
        Publish("null\0"),
        Publish("\ud800"),
        Publish("t", qos=1, packet_id=0),
        Publish("t", properties=Properties(message_expiry_interval=-1)),
        PubAck(70_000),
        Connect(keep_alive_s=70_000),
    ],
)
def test_value_that_does_not_fit_raises_a_stray_error(packet: Packet) -> None:
    with pytest.raises(PacketError):
        encode(packet, MQTT_5)


def test_absent_properties_compare_as_none() -> None:
    (packet,) = decode_all(encode(Publish("t", properties=Properties()), MQTT_5))
    assert isinstance(packet, Publish)
    assert packet.properties is NO_PROPERTIES

"""The broker's decisions, one danger per test."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_server.broker.errors import PacketError
from fleet_server.broker.packet_types import MQTT_3_1_1
from fleet_server.broker.packets import (
    ConnAck,
    Connect,
    Disconnect,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    RetainHandling,
    Subscribe,
    SubscriptionRequest,
    UnsubAck,
    Unsubscribe,
    Will,
)
from fleet_server.broker.policy import PeerCertificate
from fleet_server.broker.properties import Properties
from fleet_server.broker.reason_codes import ReasonCode

# The stage of conftest.py, which test modules cannot import.
Stage = Any

WILL = Will("presence/a", b"gone", qos=1, retain=True)


# -- connecting ----------------------------------------------------------------------------------


def test_client_believes_that_a_session_is_kept(stage: Stage) -> None:
    connection = stage.open()
    wish = Properties(session_expiry_interval=3600)
    stage.send(connection, Connect(client_id="a", keep_alive_s=60, properties=wish))
    (connack,) = stage.take(connection)
    assert connack.session_present is False
    assert connack.properties.session_expiry_interval == 0


def test_subscription_outlives_its_connection(stage: Stage) -> None:
    first = stage.connect("a", clean_start=False)
    stage.subscribe(first, "t")
    stage.lose(first)
    second = stage.connect("a", clean_start=False)
    stage.publish(second, "t")
    assert stage.messages(second) == []
    assert stage.core.subscriptions == 0


def test_second_connect_on_one_connection(stage: Stage) -> None:
    connection = stage.connect("a")
    stage.send(connection, Connect(client_id="a"))
    assert stage.take(connection) == [Disconnect(ReasonCode.PROTOCOL_ERROR)]
    assert connection in stage.closed


def test_packet_before_connect(stage: Stage) -> None:
    connection = stage.open()
    stage.send(connection, PingReq())
    assert stage.take(connection) == []
    assert connection in stage.closed


def test_connection_that_never_says_connect(stage: Stage) -> None:
    connection = stage.open()
    stage.wait(stage.core.limits.connect_timeout_ms - 1)
    assert connection not in stage.closed
    stage.wait(1)
    assert connection in stage.closed


def test_more_connections_than_allowed(build_stage: Any) -> None:
    stage = build_stage(max_connections=1)
    stage.connect("a")
    connection = stage.open()
    stage.send(connection, Connect(client_id="b"))
    assert stage.take(connection) == [ConnAck(reason=ReasonCode.SERVER_BUSY)]
    assert connection in stage.closed


def test_silent_connections_exhaust_the_broker(build_stage: Any) -> None:
    stage = build_stage(max_connections=1)
    connections = [stage.open() for _ in range(3)]
    assert stage.closed == {connections[2]}


def test_client_without_identifier_gets_none(stage: Stage) -> None:
    connection = stage.open()
    stage.send(connection, Connect())
    (connack,) = stage.take(connection)
    assert connack.properties.assigned_client_identifier


def test_3_1_1_client_without_identifier_wants_a_session(stage: Stage) -> None:
    connection = stage.open()
    stage.send(connection, Connect(version=MQTT_3_1_1, clean_start=False))
    assert stage.take(connection) == [ConnAck(reason=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)]
    assert connection in stage.closed


def test_enhanced_authentication_is_ignored(stage: Stage) -> None:
    connection = stage.open()
    properties = Properties(authentication_method="SCRAM-SHA-256")
    stage.send(connection, Connect(client_id="a", properties=properties))
    assert stage.take(connection) == [ConnAck(reason=ReasonCode.BAD_AUTHENTICATION_METHOD)]


def test_two_connections_with_one_client_identifier(stage: Stage) -> None:
    older = stage.connect("a")
    newer = stage.connect("a")
    assert stage.take(older) == [Disconnect(ReasonCode.SESSION_TAKEN_OVER)]
    assert older in stage.closed
    stage.lose(older)
    stage.send(newer, PingReq())
    assert stage.take(newer) == [PingResp()]
    assert stage.core.connections == 1


# -- wills and keep-alive ------------------------------------------------------------------------


def test_lost_connection_without_its_will(stage: Stage) -> None:
    watcher = stage.connect("watcher")
    stage.subscribe(watcher, "presence/+")
    stage.lose(stage.connect("a", will=WILL))
    assert stage.payloads(watcher) == [b"gone"]
    late = stage.connect("late")
    stage.subscribe(late, "presence/a")
    assert stage.messages(late) == [Publish("presence/a", b"gone", 1, True)]


def test_will_published_after_a_clean_disconnect(stage: Stage) -> None:
    watcher = stage.connect("watcher")
    stage.subscribe(watcher, "presence/+")
    leaving = stage.connect("a", will=WILL)
    stage.send(leaving, Disconnect())
    stage.lose(leaving)
    assert stage.messages(watcher) == []


def test_disconnect_with_will_forgets_the_will(stage: Stage) -> None:
    watcher = stage.connect("watcher")
    stage.subscribe(watcher, "presence/+")
    stage.send(stage.connect("a", will=WILL), Disconnect(ReasonCode.DISCONNECT_WITH_WILL))
    assert stage.payloads(watcher) == [b"gone"]


def test_takeover_hides_that_the_older_one_died(stage: Stage) -> None:
    watcher = stage.connect("watcher")
    stage.subscribe(watcher, "presence/+")
    stage.connect("a", will=WILL)
    newer = stage.connect("a", will=WILL)
    stage.publish(newer, "presence/a", b"born", retain=True)
    assert stage.payloads(watcher) == [b"gone", b"born"]


def test_dead_peer_stays_connected(stage: Stage) -> None:
    watcher = stage.connect("watcher")
    stage.subscribe(watcher, "presence/+")
    dead = stage.connect("a", keep_alive_s=10, will=WILL)
    stage.wait(14_999)
    assert dead not in stage.closed
    stage.wait(1)
    assert stage.take(dead) == [Disconnect(ReasonCode.KEEP_ALIVE_TIMEOUT)]
    assert stage.payloads(watcher) == [b"gone"]


def test_living_peer_is_cut_off(stage: Stage) -> None:
    alive = stage.connect("a", keep_alive_s=10)
    for _ in range(6):
        stage.wait(10_000)
        stage.send(alive, PingReq())
    assert stage.take(alive) == [PingResp()] * 6


@pytest.mark.parametrize("asked_s", [0, 61, 65_535])
def test_client_asks_for_endless_silence(stage: Stage, asked_s: int) -> None:
    connection = stage.open()
    stage.send(connection, Connect(client_id="a", keep_alive_s=asked_s))
    (connack,) = stage.take(connection)
    assert connack.properties.server_keep_alive == 60
    stage.wait(90_000)
    assert connection in stage.closed


# -- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("subscribed", [0, 1, 2])
def test_delivered_above_the_agreed_qos(stage: Stage, published: int, subscribed: int) -> None:
    connection = stage.connect("a")
    stage.subscribe(connection, SubscriptionRequest("t", subscribed))
    stage.publish(stage.connect("b"), "t", qos=published)
    (message,) = stage.messages(connection)
    assert message.qos == min(published, subscribed)
    assert (stage.packet_ids[connection] == [0]) == (message.qos == 0)


def test_publisher_is_not_told_that_nobody_listens(stage: Stage) -> None:
    connection = stage.connect("a")
    stage.publish(connection, "t")
    assert stage.take(connection) == [PubAck(7, ReasonCode.NO_MATCHING_SUBSCRIBERS)]


def test_properties_lost_on_the_way(stage: Stage) -> None:
    properties = Properties(
        content_type="application/msgpack",
        response_topic="answers",
        correlation_data=b"42",
        payload_format_indicator=0,
        user_properties=(("a", "1"), ("a", "2")),
    )
    connection = stage.connect("a")
    stage.subscribe(connection, "t")
    stage.publish(stage.connect("b"), "t", properties=properties)
    assert stage.messages(connection)[0].properties == properties


def test_qos_2_message_delivered_twice(stage: Stage) -> None:
    receiver, sender = stage.connect("receiver"), stage.connect("sender")
    stage.subscribe(receiver, SubscriptionRequest("t", 2))
    publish = Publish("t", b"once", 2, packet_id=9)
    stage.send(sender, publish)
    stage.send(sender, publish)
    stage.send(sender, PubRel(9))
    assert stage.take(sender) == [PubRec(9), PubRec(9), PubComp(9)]
    assert stage.payloads(receiver) == [b"once"]
    (packet_id,) = stage.packet_ids[receiver]
    stage.send(receiver, PubRec(packet_id))
    stage.send(receiver, PubComp(packet_id))
    assert stage.take(receiver) == [PubRel(packet_id)]


def test_too_many_unreleased_qos_2_messages(build_stage: Any) -> None:
    stage = build_stage(receive_maximum=2)
    sender = stage.connect("a")
    for packet_id in (1, 2, 3):
        stage.send(sender, Publish("t", b"", 2, packet_id=packet_id))
    assert stage.take(sender)[-1] == Disconnect(ReasonCode.RECEIVE_MAXIMUM_EXCEEDED)


def test_shared_group_gets_every_copy(stage: Stage) -> None:
    members = [stage.connect(f"m{number}") for number in range(3)]
    for member in members:
        stage.subscribe(member, "$share/group/t")
    other = stage.connect("other")
    stage.subscribe(other, "t")
    for number in range(6):
        stage.publish(other, "t", b"%d" % number)
    assert [len(stage.messages(member)) for member in members] == [2, 2, 2]
    assert len(stage.messages(other)) == 6


def test_publisher_hears_its_own_message_in_spite_of_no_local(stage: Stage) -> None:
    connection, other = stage.connect("a"), stage.connect("b")
    for subscriber in (connection, other):
        stage.subscribe(subscriber, SubscriptionRequest("t", 1, no_local=True))
    stage.publish(connection, "t")
    assert stage.messages(connection) == []
    assert len(stage.messages(other)) == 1


def test_overlapping_subscriptions_double_a_message(stage: Stage) -> None:
    connection = stage.connect("a")
    identified = [Properties(subscription_identifiers=(number,)) for number in (2, 3)]
    stage.subscribe(connection, SubscriptionRequest("t/#", 0), properties=identified[0])
    stage.subscribe(connection, SubscriptionRequest("t/+", 1), properties=identified[1])
    stage.publish(stage.connect("b"), "t/x")
    (message,) = stage.messages(connection)
    assert message.qos == 1
    assert set(message.properties.subscription_identifiers) == {2, 3}


def test_unsubscribed_topic_still_delivered(stage: Stage) -> None:
    connection = stage.connect("a")
    stage.subscribe(connection, "t")
    stage.send(connection, Unsubscribe(3, ("t", "t")))
    reasons = (ReasonCode.SUCCESS, ReasonCode.NO_SUBSCRIPTION_EXISTED)
    assert stage.take(connection) == [UnsubAck(3, reasons)]
    stage.publish(connection, "t")
    assert stage.messages(connection) == []


# -- retained messages ---------------------------------------------------------------------------


def test_newcomer_misses_the_retained_message(stage: Stage) -> None:
    stage.publish(stage.connect("a"), "t/1", b"state", retain=True)
    late = stage.connect("late")
    stage.subscribe(late, "t/+")
    assert stage.messages(late) == [Publish("t/1", b"state", 1, True)]


def test_empty_payload_does_not_clear(stage: Stage) -> None:
    publisher = stage.connect("a")
    stage.publish(publisher, "t", b"state", retain=True)
    stage.publish(publisher, "t", b"", retain=True)
    late = stage.connect("late")
    stage.subscribe(late, "t")
    assert stage.messages(late) == []
    assert (stage.core.retained_messages, stage.core.retained_bytes) == (0, 0)


def test_live_message_looks_retained(stage: Stage) -> None:
    plain, as_published = stage.connect("plain"), stage.connect("as-published")
    stage.subscribe(plain, "t")
    stage.subscribe(as_published, SubscriptionRequest("t", 1, retain_as_published=True))
    stage.publish(stage.connect("a"), "t", retain=True)
    assert [message.retain for message in stage.messages(plain)] == [False]
    assert [message.retain for message in stage.messages(as_published)] == [True]


@pytest.mark.parametrize(
    ("handling", "first", "again"),
    [
        (RetainHandling.SEND, 1, 1),
        (RetainHandling.SEND_IF_NEW, 1, 0),
        (RetainHandling.DO_NOT_SEND, 0, 0),
    ],
)
def test_retain_handling_ignored(
    stage: Stage, handling: RetainHandling, first: int, again: int
) -> None:
    connection = stage.connect("a")
    stage.publish(connection, "t", retain=True)
    stage.take(connection)
    for expected in (first, again):
        stage.subscribe(connection, SubscriptionRequest("t", 1, retain_handling=handling))
        assert len(stage.messages(connection)) == expected


def test_expired_message_delivered(stage: Stage) -> None:
    publisher = stage.connect("a")
    stage.publish(publisher, "t", retain=True, properties=Properties(message_expiry_interval=10))
    stage.wait(4_000)
    early = stage.connect("early")
    stage.subscribe(early, "t")
    assert stage.messages(early)[0].properties.message_expiry_interval == 6
    stage.wait(6_000)
    late = stage.connect("late")
    stage.subscribe(late, "t")
    assert stage.messages(late) == []


def test_retained_messages_grow_without_bound(build_stage: Any) -> None:
    stage = build_stage(max_retained_messages=1)
    publisher = stage.connect("a")
    short = Properties(message_expiry_interval=1)
    stage.publish(publisher, "t/1", retain=True, properties=short)
    stage.publish(publisher, "t/2", retain=True)
    stage.wait(1_000)
    stage.publish(publisher, "t/2", retain=True)
    reasons = [packet.reason for packet in stage.take(publisher)]
    nobody = ReasonCode.NO_MATCHING_SUBSCRIBERS
    assert reasons == [nobody, ReasonCode.QUOTA_EXCEEDED, nobody]


# -- bad input -----------------------------------------------------------------------------------


def test_malformed_packet_closes_somebody_else(stage: Stage) -> None:
    bad, good = stage.connect("bad", will=WILL), stage.connect("good")
    stage.subscribe(good, "#")
    error = PacketError(ReasonCode.MALFORMED_PACKET, "nonsense")
    stage.apply(stage.core.malformed(bad, error, stage.now_ms))
    assert stage.take(bad) == [Disconnect(ReasonCode.MALFORMED_PACKET)]
    assert stage.closed == {bad}
    assert stage.payloads(good) == [b"gone"]


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (Publish("a/#"), ReasonCode.TOPIC_NAME_INVALID),
        (Publish(""), ReasonCode.TOPIC_NAME_INVALID),
        (Publish("/" * 32), ReasonCode.TOPIC_NAME_INVALID),
        (Publish("t" * 1025), ReasonCode.TOPIC_NAME_INVALID),
        (Publish("t", properties=Properties(topic_alias=1)), ReasonCode.TOPIC_ALIAS_INVALID),
        (
            Publish("t", properties=Properties(subscription_identifiers=(1,))),
            ReasonCode.PROTOCOL_ERROR,
        ),
        (
            Subscribe(1, (SubscriptionRequest("$share/g/t", no_local=True),)),
            ReasonCode.PROTOCOL_ERROR,
        ),
        (PingResp(), ReasonCode.PROTOCOL_ERROR),
    ],
)
def test_forbidden_packet_tolerated(stage: Stage, packet: Any, reason: ReasonCode) -> None:
    connection = stage.connect("a")
    stage.send(connection, packet)
    assert stage.take(connection) == [Disconnect(reason)]
    assert connection in stage.closed


@pytest.mark.parametrize(
    "topic_filter", ["", "a/#/b", "a#", "a/b+", "$share//t", "$share/g", "$share/g+/t"]
)
def test_invalid_filter_granted(stage: Stage, topic_filter: str) -> None:
    connection = stage.connect("a")
    reasons = stage.subscribe(connection, topic_filter, "fine")
    assert reasons == (ReasonCode.TOPIC_FILTER_INVALID, ReasonCode.GRANTED_QOS_1)


def test_subscriptions_of_one_client_grow_without_bound(build_stage: Any) -> None:
    stage = build_stage(max_subscriptions_per_client=1)
    reasons = stage.subscribe(stage.connect("a"), "t/1", "t/2", "t/1")
    granted = ReasonCode.GRANTED_QOS_1
    assert reasons == (granted, ReasonCode.QUOTA_EXCEEDED, granted)


# -- policy --------------------------------------------------------------------------------------


class OwnTopicsOnly:
    """Everybody needs a name, and publishes and subscribes below it."""

    authenticates = True

    def authenticate(
        self, connect: Connect, certificate: PeerCertificate | None
    ) -> str | ReasonCode:
        return connect.username or ReasonCode.BAD_USER_NAME_OR_PASSWORD

    def may_publish(self, identity: str, topic: str) -> bool:
        return topic.startswith(f"{identity}/")

    def may_subscribe(self, identity: str, topic_filter: str) -> bool:
        return topic_filter.startswith(f"{identity}/")


def test_nameless_client_let_in(build_stage: Any) -> None:
    stage = build_stage(OwnTopicsOnly())
    connection = stage.open()
    stage.send(connection, Connect(client_id="a"))
    assert stage.take(connection) == [ConnAck(reason=ReasonCode.BAD_USER_NAME_OR_PASSWORD)]
    assert connection in stage.closed


def test_client_publishes_and_subscribes_for_another(build_stage: Any) -> None:
    stage = build_stage(OwnTopicsOnly())
    ann, bob = stage.connect("1", username="ann"), stage.connect("2", username="bob")
    assert stage.subscribe(bob, "bob/#", "$share/g/ann/#", "#") == (
        ReasonCode.GRANTED_QOS_1,
        ReasonCode.NOT_AUTHORIZED,
        ReasonCode.NOT_AUTHORIZED,
    )
    stage.publish(ann, "bob/x", retain=True)
    assert stage.take(ann) == [PubAck(7, ReasonCode.NOT_AUTHORIZED)]
    assert stage.messages(bob) == []
    assert stage.core.retained_messages == 0


def test_will_used_to_publish_for_another(build_stage: Any) -> None:
    stage = build_stage(OwnTopicsOnly())
    connection = stage.open()
    stage.send(connection, Connect(client_id="a", username="ann", will=Will("bob/x", b"")))
    assert stage.take(connection) == [ConnAck(reason=ReasonCode.NOT_AUTHORIZED)]


def test_refusal_that_the_protocol_cannot_express_stays_silent(build_stage: Any) -> None:
    stage = build_stage(OwnTopicsOnly())
    old = stage.connect("a", version=MQTT_3_1_1, username="ann")
    stage.publish(old, "bob/x")
    assert old in stage.closed


# -- leaving -------------------------------------------------------------------------------------


def test_client_is_not_told_of_the_shutdown(stage: Stage) -> None:
    new, old = stage.connect("new", will=WILL), stage.connect("old", version=MQTT_3_1_1)
    arriving = stage.open()
    stage.apply(stage.core.shut_down(stage.now_ms))
    assert stage.take(new) == [Disconnect(ReasonCode.SERVER_SHUTTING_DOWN)]
    assert stage.closed == {new, old, arriving}
    assert (stage.core.connections, stage.core.subscriptions) == (0, 0)

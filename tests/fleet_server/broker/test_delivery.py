"""One slow receiver must neither hold up the broker nor lose messages without a word."""

from __future__ import annotations

from typing import Any

from fleet_server.broker.packets import (
    Disconnect,
    PubAck,
    PubRec,
    PubRel,
    SubscriptionRequest,
    Will,
)
from fleet_server.broker.properties import Properties
from fleet_server.broker.reason_codes import ReasonCode

Stage = Any  # the stage of conftest.py, which test modules cannot import
SMALL_WINDOW = Properties(receive_maximum=2)


def numbered(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last)]


def test_receive_maximum_of_the_client_exceeded(stage: Stage) -> None:
    slow, sender = stage.connect("slow", properties=SMALL_WINDOW), stage.connect("sender")
    stage.subscribe(slow, "t")
    for payload in numbered(0, 4):
        stage.publish(sender, "t", payload)
    assert stage.payloads(slow) == numbered(0, 2)
    stage.send(slow, PubAck(stage.packet_ids[slow][0]))
    assert stage.payloads(slow) == numbered(2, 3)
    stage.send(slow, PubAck(stage.packet_ids[slow][0]))  # acknowledged before: frees nothing
    assert stage.payloads(slow) == []


def test_waiting_messages_change_their_order(stage: Stage) -> None:
    slow, sender = stage.connect("slow", properties=SMALL_WINDOW), stage.connect("sender")
    stage.subscribe(slow, "t")
    for payload in numbered(0, 20):
        stage.publish(sender, "t", payload)
    received = stage.payloads(slow)
    for packet_id in stage.packet_ids[slow]:  # grows while it is read
        stage.send(slow, PubAck(packet_id))
        received += stage.payloads(slow)
    assert received == numbered(0, 20)


def test_packet_identifier_used_twice_at_a_time(stage: Stage) -> None:
    receiver, sender = stage.connect("receiver"), stage.connect("sender")
    stage.subscribe(receiver, "t")
    stage.publish(sender, "t")
    (held,) = stage.packet_ids[receiver]
    for _ in range(0xFFFF + 5):
        stage.publish(sender, "t")
        packet_id = stage.packet_ids[receiver].pop()
        assert packet_id != held
        stage.send(receiver, PubAck(packet_id))


def test_queue_of_a_slow_client_grows_without_bound(build_stage: Any) -> None:
    stage = build_stage(max_queued_messages=3)
    will = Will("wills", b"slow one is gone", qos=1)
    slow = stage.connect("slow", properties=SMALL_WINDOW, will=will)
    sender = stage.connect("sender")
    stage.subscribe(slow, "t")
    stage.subscribe(sender, "wills")
    for payload in numbered(0, 6):
        stage.publish(sender, "t", payload)
    assert stage.take(slow)[-1] == Disconnect(ReasonCode.QUOTA_EXCEEDED)
    assert stage.closed == {slow}
    assert stage.payloads(sender) == [b"slow one is gone"]
    assert stage.core.statistics.messages_dropped == 4


def test_few_large_messages_pass_the_bound_of_the_queue(build_stage: Any) -> None:
    stage = build_stage(max_queued_bytes=1000)
    slow, sender = stage.connect("slow", properties=SMALL_WINDOW), stage.connect("sender")
    stage.subscribe(slow, "t")
    for _ in range(4):
        stage.publish(sender, "t", bytes(600))
    assert slow in stage.closed


def test_overflow_spreads_from_will_to_will(build_stage: Any) -> None:
    # Each slow client listens for the death of the one before it.
    stage = build_stage(max_queued_messages=0)
    window = Properties(receive_maximum=1)
    chain = [
        stage.connect(f"c{number}", properties=window, will=Will(f"t/{number + 1}", b"x", 1))
        for number in range(20)
    ]
    sender = stage.connect("sender")
    for number, connection in enumerate(chain):
        stage.subscribe(connection, f"t/{number}")
        stage.publish(sender, f"t/{number}")
    stage.publish(sender, "t/0")
    assert stage.closed == set(chain)


def test_message_expires_in_the_queue_and_is_sent(stage: Stage) -> None:
    slow, sender = stage.connect("slow", properties=SMALL_WINDOW), stage.connect("sender")
    stage.subscribe(slow, "t")
    for payload in numbered(0, 3):
        stage.publish(sender, "t", payload, properties=Properties(message_expiry_interval=5))
    stage.publish(sender, "t", b"lasting")
    stage.take(slow)
    stage.wait(5_000)
    stage.send(slow, PubAck(stage.packet_ids[slow][0]))
    assert stage.payloads(slow) == [b"lasting"]


def test_congested_socket_is_written_to(stage: Stage) -> None:
    slow, sender = stage.connect("slow"), stage.connect("sender")
    stage.subscribe(slow, SubscriptionRequest("one", 1), SubscriptionRequest("zero", 0))
    stage.core.congested(slow)
    stage.publish(sender, "one", b"waits")
    stage.publish(sender, "zero", b"dropped", qos=0)
    assert stage.take(slow) == []
    stage.apply(stage.core.relieved(slow, stage.now_ms))
    assert stage.payloads(slow) == [b"waits"]
    assert stage.core.statistics.messages_dropped == 1


def test_packet_above_the_size_that_the_client_takes(stage: Stage) -> None:
    small = stage.connect("small", properties=Properties(maximum_packet_size=64))
    stage.subscribe(small, "t")
    sender = stage.connect("sender")
    stage.publish(sender, "t", bytes(64))
    stage.publish(sender, "t", bytes(32))
    assert [len(payload) for payload in stage.payloads(small)] == [32]


def test_refused_qos_2_message_blocks_the_window(stage: Stage) -> None:
    window = Properties(receive_maximum=1)
    receiver, sender = stage.connect("receiver", properties=window), stage.connect("sender")
    stage.subscribe(receiver, SubscriptionRequest("t", 2))
    for payload in numbered(0, 2):
        stage.publish(sender, "t", payload, qos=1)
    stage.send(sender, PubRel(99))
    stage.take(receiver)
    (packet_id,) = stage.packet_ids[receiver]
    stage.send(receiver, PubRec(packet_id))  # not QoS 2: answered, and frees nothing
    assert stage.take(receiver) == [PubRel(packet_id, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND)]
    stage.send(receiver, PubAck(packet_id))
    assert stage.payloads(receiver) == numbered(1, 2)


def test_receiver_refuses_a_qos_2_message_and_starves(stage: Stage) -> None:
    window = Properties(receive_maximum=1)
    receiver, sender = stage.connect("receiver", properties=window), stage.connect("sender")
    stage.subscribe(receiver, SubscriptionRequest("t", 2))
    for payload in numbered(0, 2):
        stage.publish(sender, "t", payload, qos=2)
        stage.send(sender, PubRel(7))
    stage.take(receiver)
    stage.send(receiver, PubRec(stage.packet_ids[receiver][0], ReasonCode.QUOTA_EXCEEDED))
    assert stage.payloads(receiver) == numbered(1, 2)

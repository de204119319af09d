"""Guards that a device is told what is committed once, and in messages that it can read."""

from __future__ import annotations

from fleet_contract import codec
from fleet_contract.messages.report import Role, WindowAck, read_ack
from fleet_server.dispatch.acks import merge_acks
from fleet_server.dispatch.inbound import DeviceAck

BOOT = "00" * 8


def window(start_ms: int, sequence: int) -> WindowAck:
    return WindowAck("digits", "ab" * 32, Role.ACTIVE, start_ms, sequence)


def test_one_message_a_boot_session_with_the_highest_sequences() -> None:
    merged = list(
        merge_acks(
            [
                DeviceAck("device-1", BOOT, windows=(window(0, 3), window(1, 1))),
                DeviceAck("device-1", BOOT, progress=4),
                DeviceAck("device-2", BOOT, progress=1),
                DeviceAck("device-1", "11" * 8, progress=0),
                DeviceAck("device-1", BOOT, progress=2, windows=(window(0, 2),)),
            ]
        )
    )
    assert [(device, ack.session, ack.progress) for device, ack in merged] == [
        ("device-1", BOOT, 4),
        ("device-2", BOOT, 1),
        ("device-1", "11" * 8, 0),
    ]
    assert merged[0][1].windows == [window(0, 3), window(1, 1)]


def test_largest_ack_of_the_server_can_be_read() -> None:
    longest = tuple(
        WindowAck("m" * 64, "ab" * 32, Role.SHADOW, (1 << 63) - number, (1 << 63) - 1)
        for number in range(1, 2_000)
    )
    acks = [ack for _, ack in merge_acks([DeviceAck("device-1", BOOT, 1 << 62, longest)])]
    assert sum(len(read_ack(codec.encode_msgpack(ack)).windows) for ack in acks) == 1_999

"""Guards the server from what a device may send: any bytes give a message or a refusal."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_contract import codec, limits
from fleet_contract.errors import Reason, Refused
from fleet_contract.features import FeatureSchema
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.presence import Presence, Seen, read_presence
from fleet_contract.messages.progress import ModelProgress, Phase, Progress, Refusal, read_progress
from fleet_contract.messages.report import (
    Ack,
    Pairs,
    Report,
    Role,
    Window,
    WindowAck,
    check_sketches,
    read_ack,
    read_report,
)
from fleet_contract.sketches import features, latency
from fleet_contract.sketches.latency import LatencySketch

BOOT = "00" * 8
WINDOW = Window(
    *("ab" * 32, Role.ACTIVE, 0, 1_000, 1, False, 10, 2),
    *(latency.of([5, 7]), "cd" * 32, None, None, Pairs(3, 2, 1)),
)
PRESENCE = Presence(
    True, 1, BOOT, 1, "0.1.0", Capabilities({}, "x86_64", 21, 10, 1), {"digits": "ab" * 32}
)
PROGRESS = Progress(
    BOOT,
    1,
    7,
    [ModelProgress("digits", "r1", Phase.SOAKING, "ab" * 32, "ab" * 32, "", 3, 1_000, 5)],
    [Refusal("fleet/v1/home/stop", Reason.OLD_EPOCH, "epoch 3", 5)],
)
READERS: dict[str, Any] = {
    "presence": (read_presence, PRESENCE),
    "progress": (read_progress, PROGRESS),
    "report": (read_report, Report(BOOT, [WINDOW])),
    "ack": (read_ack, Ack(BOOT, 7, [WindowAck("digits", "ab" * 32, Role.ACTIVE, 0, 1)])),
}


def changed(**changes: Any) -> bytes:
    return codec.encode_msgpack(Report(BOOT, [msgspec.structs.replace(WINDOW, **changes)]))


@pytest.mark.parametrize("name", READERS)
def test_round_trip(name: str) -> None:
    read, message = READERS[name]
    assert read(codec.encode_msgpack(message)) == message


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
def test_any_bytes_give_a_message_or_a_refusal(name: str, data: st.DataObject) -> None:
    read, message = READERS[name]
    good = codec.encode_msgpack(message)
    # Rubbish, and real messages with a part replaced: those get further.
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, len(good)))
    damaged = good[:start] + data.draw(st.binary(max_size=12)) + good[end:]
    for candidate in (damaged, data.draw(st.binary(max_size=100))):
        try:
            result = read(candidate)
        except Refused as refused:
            assert refused.reason is Reason.MALFORMED
        else:
            assert isinstance(result, type(message))


@pytest.mark.parametrize(
    ("name", "limit_bytes"),
    [
        ("presence", limits.STATUS_BYTES),
        ("progress", limits.STATUS_BYTES),
        ("report", limits.REPORT_BYTES),
        ("ack", limits.STATUS_BYTES),
    ],
)
def test_size_is_checked_first(name: str, limit_bytes: int) -> None:
    with pytest.raises(Refused) as caught:
        READERS[name][0](b"\x00" * (limit_bytes + 1))
    assert caught.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "changes",
    [
        {"errors": 11},
        {"predictions": -1},
        {"predictions": limits.ROWS_PER_WINDOW + 1},
        {"sequence": -1},
        {"sequence": 1 << 63},
        {"start_ms": 1 << 63},
        {"length_ms": -1},
        {"release": "ab"},
        {"release": "../" * 21 + "x"},
        {"schema": "AB" * 32},
        {"role": "boss"},
        {"latency": LatencySketch(0, 0, [-1])},
        {"latency": LatencySketch(0, 0, [0])},
        {"pairs": Pairs(1, 2, 0)},
        {"pairs": Pairs(1, 1, 2)},
        {"pairs": Pairs(1, -1, 0)},
        {"pairs": Pairs(limits.ROWS_PER_WINDOW + 1, 0, 0)},
    ],
    ids=str,
)
def test_impossible_windows_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        read_report(changed(**changes))
    assert caught.value.reason is Reason.MALFORMED


def test_too_many_windows_are_refused() -> None:
    windows = [WINDOW] * (limits.WINDOWS_PER_REPORT + 1)
    with pytest.raises(Refused, match="malformed"):
        read_report(codec.encode_msgpack(Report(BOOT, windows)))
    assert len(read_report(codec.encode_msgpack(Report(BOOT, windows[1:]))).windows) == 64


@pytest.mark.parametrize("session", ["", "0" * 15, "0" * 17, "G" * 16, "0" * 16 + "\n"])
def test_other_sessions_are_refused(session: str) -> None:
    with pytest.raises(Refused, match="malformed"):
        read_report(codec.encode_msgpack(Report(session, [])))


def test_sketches_must_follow_the_schema_that_they_name(schema: FeatureSchema) -> None:
    right = msgspec.structs.replace(
        WINDOW,
        schema=schema.digest(),
        inputs=features.empty(schema.inputs),
        outputs=features.empty(schema.outputs),
    )
    check_sketches(right, schema)
    check_sketches(msgspec.structs.replace(right, inputs=None, outputs=None), schema)
    for wrong in (
        {"schema": "cd" * 32},
        {"inputs": right.outputs},
        {"outputs": right.inputs},
    ):
        with pytest.raises(Refused, match="malformed"):
            check_sketches(msgspec.structs.replace(right, **wrong), schema)


def test_presence_of_an_older_agent_has_seen_nothing() -> None:
    fields = msgspec.to_builtins(PRESENCE)
    del fields["seen"]
    assert read_presence(codec.encode_msgpack(fields)).seen == Seen()


@pytest.mark.parametrize(
    "seen",
    [{"epoch": -1}, {"epoch": 1 << 63}, {"families": ["digits"] * 257}, {"families": ["../x"]}],
)
def test_what_a_device_says_it_has_seen_is_bounded(seen: dict[str, Any]) -> None:
    fields = msgspec.to_builtins(PRESENCE) | {"seen": seen}
    with pytest.raises(Refused) as refused:
        read_presence(codec.encode_msgpack(fields))
    assert refused.value.reason is Reason.MALFORMED

"""Telemetry that waits for the server: nothing is lost silently, nothing grows without bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.core.outbox import FIRST_REPEAT_MS, LONGEST_REPEAT_MS, Outbox
from fleet_contract import limits
from fleet_contract.errors import Refused
from fleet_contract.messages.report import Ack, Role, Window, WindowAck, read_report
from fleet_contract.sketches import latency
from fleet_contract.sketches.categorical import CategoricalSketch
from fleet_contract.sketches.features import FeatureSketches

SESSION, OLDER = "0" * 16, "1" * 16
RELEASE = "a" * 64


def sketches(categories: int) -> FeatureSketches:
    return FeatureSketches(numeric=[], categorical=[CategoricalSketch([1] * categories)])


def window(start_ms: int, sequence: int = 0, *, large: int = 0, predictions: int = 3) -> Window:
    return Window(
        release=RELEASE,
        role=Role.ACTIVE,
        start_ms=start_ms,
        length_ms=1000,
        sequence=sequence,
        closed=True,
        predictions=predictions,
        errors=1,
        latency=latency.of([100, 200]),
        schema="b" * 64,
        inputs=sketches(large) if large else None,
        outputs=None,
        pairs=None,
    )


def ack(*entries: tuple[int, int], session: str = SESSION, model: str = "digits") -> Ack:
    acks = [WindowAck(model, RELEASE, Role.ACTIVE, start, seq) for start, seq in entries]
    return Ack(session, -1, acks)


def sent(outbox: Outbox, now_ms: int | None = None) -> list[Window]:
    return [w for _, payload in outbox.messages(now_ms) for w in read_report(payload).windows]


def test_unacknowledged_window_is_sent_again_and_later_each_time() -> None:
    outbox = Outbox()
    outbox.add("digits", SESSION, window(1))
    assert len(sent(outbox, 0)) == 1
    assert sent(outbox, FIRST_REPEAT_MS - 1) == []
    assert len(sent(outbox, FIRST_REPEAT_MS)) == 1
    assert sent(outbox, 2 * FIRST_REPEAT_MS) == []
    for _ in range(40):
        assert len(sent(outbox, outbox.next_due_ms)) == 1
    before_ms = outbox.next_due_ms
    assert before_ms is not None
    sent(outbox, before_ms)
    assert outbox.next_due_ms == before_ms + LONGEST_REPEAT_MS


def test_acknowledgement_of_an_older_state_keeps_the_newer() -> None:
    outbox = Outbox()
    outbox.add("digits", SESSION, window(1, 0))
    outbox.add("digits", SESSION, window(1, 2))
    outbox.acknowledge(ack((1, 1)))
    assert [w.sequence for w in sent(outbox)] == [2]
    outbox.acknowledge(ack((1, 2)))
    assert len(outbox) == 0
    assert outbox.size_bytes == 0


def test_acknowledgement_of_another_session_or_model_removes_nothing() -> None:
    outbox = Outbox()
    outbox.add("digits", SESSION, window(1))
    assert outbox.acknowledge(ack((1, 9), session=OLDER)) == 0
    assert outbox.acknowledge(ack((1, 9), model="other")) == 0
    assert len(outbox) == 1


def test_older_state_does_not_replace_a_newer_one() -> None:
    outbox = Outbox()
    outbox.add("digits", SESSION, window(1, 5, predictions=50))
    outbox.add("digits", SESSION, window(1, 4, predictions=40))
    assert [w.predictions for w in sent(outbox)] == [50]


def test_full_outbox_drops_the_oldest_sketches_and_keeps_their_counters() -> None:
    outbox = Outbox(limit_bytes=5000)
    for start in range(10):
        outbox.add("digits", SESSION, window(start, large=1000))
    windows = sent(outbox)
    assert [w.start_ms for w in windows] == list(range(10))
    assert all(w.predictions == 3 for w in windows)
    with_sketches = [w.start_ms for w in windows if w.inputs is not None]
    assert with_sketches == list(range(10 - len(with_sketches), 10))
    report = read_report(outbox.messages()[0][1])
    assert report.dropped_sketches == 10 - len(with_sketches) > 0
    assert report.dropped_windows == 0


def test_outbox_full_of_counters_counts_the_windows_it_drops() -> None:
    outbox = Outbox(limit_windows=4)
    for start in range(10):
        outbox.add("digits", SESSION, window(start))
    report = read_report(outbox.messages()[0][1])
    assert [w.start_ms for w in report.windows] == [6, 7, 8, 9]
    assert report.dropped_windows == 6


def test_window_larger_than_a_message_goes_without_its_sketches() -> None:
    outbox = Outbox()
    outbox.add("digits", SESSION, window(1, large=300_000))
    ((_, payload),) = outbox.messages()
    report = read_report(payload)
    assert report.windows[0].inputs is None
    assert report.dropped_sketches == 1


def test_windows_of_an_earlier_boot_go_out_under_their_own_session() -> None:
    before = Outbox(limit_windows=2)
    for start in range(3):
        before.add("digits", OLDER, window(start))
    before.messages(0)
    after = Outbox()
    after.restore(before.encode())
    after.add("digits", SESSION, window(7))
    reports = [read_report(payload) for _, payload in after.messages(0)]
    assert {r.session: [w.start_ms for w in r.windows] for r in reports} == {
        OLDER: [1, 2],
        SESSION: [7],
    }
    assert {r.session: r.dropped_windows for r in reports} == {OLDER: 1, SESSION: 0}


@given(st.binary(max_size=300))
def test_broken_file_is_refused(data: bytes) -> None:
    outbox = Outbox()
    try:
        outbox.restore(data)
    except Refused:
        assert len(outbox) == 0


def test_truncated_file_is_refused() -> None:
    outbox = Outbox()
    outbox.add("digits", SESSION, window(1))
    with pytest.raises(Refused):
        Outbox().restore(outbox.encode()[:-3])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["digits", "faces"]),
            st.sampled_from([SESSION, OLDER]),
            st.integers(0, 40),
            st.integers(0, 3),
            st.sampled_from([0, 0, 50, 5_000]),
        ),
        max_size=150,
    ),
    st.integers(600, 60_000),
)
def test_bounds_hold_and_every_window_is_sent_or_counted(
    added: list[tuple[str, str, int, int, int]], limit_bytes: int
) -> None:
    outbox = Outbox(limit_bytes=limit_bytes, limit_windows=50)
    keys = set()
    for model, session, start, sequence, large in added:
        outbox.add(model, session, window(start, sequence, large=large))
        keys.add((model, session, start))
        assert outbox.size_bytes <= limit_bytes
        assert len(outbox) <= 50
    messages = outbox.messages()
    assert all(len(payload) <= limits.REPORT_BYTES for _, payload in messages)
    reports = [(model, read_report(payload)) for model, payload in messages]
    found = {(model, r.session, w.start_ms) for model, r in reports for w in r.windows}
    assert found <= keys
    assert len(found) == len(outbox)
    for model, report in reports:
        acks = [WindowAck(model, w.release, w.role, w.start_ms, w.sequence) for w in report.windows]
        outbox.acknowledge(Ack(report.session, -1, acks))
    assert len(outbox) == 0
    assert outbox.size_bytes == 0

"""Telemetry between the hosts, the outbox and flash: sent in time, kept over a kill, no wear."""

from itertools import pairwise
from pathlib import Path

import pytest

from device_agent.inference.host import ModelHost
from device_agent.shell.store import Store
from device_agent.shell.telemetry import OFFLINE_INTERVAL_MS, SAVE_EVERY_MS, Telemetry
from fleet_contract.messages.report import Ack, Role, Window, WindowAck, read_report
from fleet_contract.sketches import latency

SESSION = "0" * 16


class FixedClock:
    """A clock that stands still, and draws the middle of everything."""

    def now_ms(self) -> int:
        return 0

    def ticks_ns(self) -> int:
        return 0

    def random_bytes(self, count: int) -> bytes:
        return b"\x80" + bytes(count - 1)


class Host:
    """A host whose windows are as long as the time between two looks."""

    def __init__(self) -> None:
        self.start_ms = 0

    def collect(self, *, now_ms: int, close: bool) -> list[Window]:
        assert close
        window = Window(
            release="a" * 64,
            role=Role.ACTIVE,
            start_ms=self.start_ms,
            length_ms=max(0, now_ms - self.start_ms),
            sequence=0,
            closed=True,
            predictions=1,
            errors=0,
            latency=latency.EMPTY,
            schema="b" * 64,
            inputs=None,
            outputs=None,
            pairs=None,
        )
        self.start_ms = now_ms
        return [window]


@pytest.fixture
def hosts() -> dict[str, ModelHost]:
    return {"digits": Host()}  # type: ignore[dict-item]


@pytest.fixture
def telemetry(store: Store) -> Telemetry:
    telemetry = Telemetry(store, FixedClock(), fleet="home", device="device-1")
    telemetry.begin(SESSION, 0)
    telemetry.every("digits", 1000, 0)
    return telemetry


def windows_of(messages: list[tuple[str, bytes]]) -> list[Window]:
    return [window for _, payload in messages for window in read_report(payload).windows]


def acknowledge(telemetry: Telemetry, windows: list[Window]) -> None:
    acks = [WindowAck("digits", w.release, w.role, w.start_ms, w.sequence) for w in windows]
    telemetry.acknowledge(Ack(SESSION, -1, acks))


def outbox_of(store: Store) -> Path:
    return store.folder / "outbox"


def test_windows_end_at_the_interval_and_not_in_step(
    telemetry: Telemetry, hosts: dict[str, ModelHost]
) -> None:
    first_ms = telemetry.next_due_ms(connected=True)
    assert first_ms is not None
    assert 0 < first_ms <= 1001
    starts = []
    for now_ms in range(0, 5001, 100):
        windows = windows_of(telemetry.work(hosts, now_ms, connected=True))
        acknowledge(telemetry, windows)
        starts += [window.start_ms for window in windows]
    assert len(starts) == 5
    assert {after - before for before, after in pairwise(starts[1:])} == {1000}


def test_repeated_directive_does_not_put_the_window_off(
    telemetry: Telemetry, hosts: dict[str, ModelHost]
) -> None:
    found = []
    for now_ms in range(0, 3000, 100):
        telemetry.every("digits", 1000, now_ms)
        found += windows_of(telemetry.work(hosts, now_ms, connected=True))
    assert len(found) >= 2


def test_device_without_broker_closes_windows_rarely(
    telemetry: Telemetry, hosts: dict[str, ModelHost]
) -> None:
    for now_ms in range(0, 10 * OFFLINE_INTERVAL_MS, 1000):
        assert telemetry.work(hosts, now_ms, connected=False) == []
    assert 9 <= telemetry.waiting <= 11


def test_acknowledged_telemetry_never_touches_flash(
    telemetry: Telemetry, hosts: dict[str, ModelHost], store: Store
) -> None:
    for now_ms in range(0, 3 * SAVE_EVERY_MS, 500):
        acknowledge(telemetry, windows_of(telemetry.work(hosts, now_ms, connected=True)))
    assert not outbox_of(store).exists()


def test_unacknowledged_telemetry_survives_a_kill(
    telemetry: Telemetry, hosts: dict[str, ModelHost], store: Store
) -> None:
    for now_ms in range(0, SAVE_EVERY_MS + 1, 1000):
        telemetry.work(hosts, now_ms, connected=True)
    again = Telemetry(store, FixedClock(), fleet="home", device="device-1")
    again.begin("1" * 16, 0)
    assert again.waiting >= telemetry.waiting - 1 > 50
    windows = windows_of(again.work({}, 1, connected=True))
    acknowledge(again, windows)
    assert again.waiting == 0
    again.work({}, SAVE_EVERY_MS, connected=True)
    assert not outbox_of(store).exists()


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, b"\x82"])
def test_damaged_outbox_does_not_keep_the_agent_from_starting(store: Store, damage: bytes) -> None:
    outbox_of(store).write_bytes(damage)
    telemetry = Telemetry(store, FixedClock(), fleet="home", device="device-1")
    telemetry.begin(SESSION, 0)
    assert telemetry.waiting == 0


def test_clock_set_back_does_not_silence_the_device(
    telemetry: Telemetry, hosts: dict[str, ModelHost]
) -> None:
    far_ms = 10**9
    telemetry.work(hosts, far_ms, connected=True)
    acknowledge(telemetry, windows_of(telemetry.work(hosts, far_ms, connected=True)))
    found = []
    for now_ms in range(0, 3000, 100):
        found += windows_of(telemetry.work(hosts, now_ms, connected=True))
    assert len(found) >= 2

"""A server that refuses, or is not there, is asked ever more rarely: a fleet must not drown it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from device_agent.shell.certificate import join, next_key, request_for
from device_agent.shell.http_source import HttpSource
from device_agent.shell.identity import DeviceIdentity
from device_agent.shell.mqtt import BrokerConnection
from device_agent.shell.store import Store
from device_agent.shell.tls import Tls, Trouble, unverified
from device_agent.shell.upkeep import FIRST_DELAY_MS, LONGEST_DELAY_MS, SPREAD_MS, Upkeep
from tests.device_agent.shell.toy_authority import ToyAuthority

DEVICE = "device-1"
SOME_DAY_MS = 1_000_000


class HandClock:
    """Moves when a test says so; every share of a duration is the half of it."""

    def __init__(self) -> None:
        self.ms = SOME_DAY_MS

    def now_ms(self) -> int:
        return self.ms

    def ticks_ns(self) -> int:
        return self.ms * 1_000_000

    def random_bytes(self, count: int) -> bytes:
        return b"\x80" + bytes(count - 1)


class Kept:
    """An upkeep whose server is not there, and whose work waits for the test."""

    def __init__(self, folder: Path, port: int) -> None:
        self.clock = HandClock()
        store, authority = Store(folder), ToyAuthority()
        tls = Tls(folder, DEVICE, now_ms=self.clock.now_ms, time_floor_ms=lambda: 0)
        tls.save_anchors(authority.anchors)
        key = next_key(folder)
        tls.save_pair(join(key, authority.certify(request_for(key, DEVICE)), DEVICE))
        url = f"https://127.0.0.1:{port}"
        self.work: list[Callable[[], None]] = []
        ticks_ns = self.clock.ticks_ns
        broker = BrokerConnection(
            "mqtts://127.0.0.1:1",
            client_id=DEVICE,
            clock=self.clock,
            emit=cast(Any, None),
            tls=unverified,
        )
        self.upkeep = Upkeep(
            store=store,
            identity=DeviceIdentity(url, "home", DEVICE, "mqtts://127.0.0.1:1", url, ""),
            tls=tls,
            catalogue=cast(Any, None),
            connection=broker,
            artifacts=HttpSource(url, ticks_ns=ticks_ns, tls=tls.context),
            clock=self.clock,
            submit=self.work.append,
            time_floor_ms=lambda: 0,
            stopping=lambda: False,
        )

    def wait_ms(self) -> int:
        """How long the upkeep waits before it does the next thing; then it is done."""
        due_ms = self.upkeep.wake_ms()
        assert due_ms is not None
        waited_ms = due_ms - self.clock.ms
        self.clock.ms = due_ms - 1
        self.upkeep.on_time()
        assert not self.work, "before its time"
        self.clock.ms = due_ms
        self.upkeep.on_time()
        self.upkeep.on_time()
        assert len(self.work) == 1, "one thing at a time"
        self.work.pop()()
        return waited_ms


@pytest.fixture
def kept(tmp_path: Path, free_port: int) -> Kept:
    return Kept(tmp_path, free_port)


def test_refused_again_and_again(kept: Kept) -> None:
    kept.clock.ms += SPREAD_MS
    kept.upkeep.notice(Trouble.REFUSED)
    assert kept.wait_ms() == SPREAD_MS // 2
    waits = []
    for _ in range(14):
        kept.upkeep.notice(Trouble.REFUSED)
        waits.append(kept.wait_ms())
    assert waits[:3] == [FIRST_DELAY_MS * 3 // 4 << doubled for doubled in range(3)]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_DELAY_MS * 3 // 4


def test_connection_that_came_about_ends_the_waiting(kept: Kept) -> None:
    kept.upkeep.notice(Trouble.REFUSED)
    for _ in range(5):
        kept.wait_ms()
    kept.upkeep.notice(None)
    due_ms = kept.upkeep.wake_ms()
    assert due_ms is not None
    assert due_ms > kept.clock.ms + LONGEST_DELAY_MS, "only the renewal in some days is left"


def test_refusal_that_renewing_does_not_help_is_no_loop(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that takes no certificate, however new, does not make the device ask and ask."""
    monkeypatch.setattr(kept.upkeep, "_renew", lambda: None)
    waits = []
    for _ in range(14):
        kept.upkeep.notice(Trouble.REFUSED)
        waits.append(kept.wait_ms())
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_DELAY_MS * 3 // 4

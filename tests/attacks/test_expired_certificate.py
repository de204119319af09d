"""A certificate whose time is over: of a device from a drawer, or in the hands of who found one.

It is good for its renewal and for nothing else. The agent finds that out by itself, and is back in
the fleet without anybody's help; its model answers all the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from device_agent.shell import mqtt
from device_agent.shell.certificate import PAIR_FILE
from device_agent.shell.workshop import Workshop
from fleet_server.clock import SystemClock
from tests.attacks.battlefield import Battlefield
from tests.attacks.identities import Identity, answers, heard, recorded, refusal, settled
from tests.attacks.insider import DEVICE
from tests.attacks.siege import DAY_MS

pytestmark = pytest.mark.slow
MINUTE_MS = 60_000


class ServerClock(SystemClock):
    """The server's clock; ``ahead_ms`` puts it forward."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


@pytest.fixture
def fleet(guarded: Battlefield, monkeypatch: pytest.MonkeyPatch) -> Iterator[Battlefield]:
    monkeypatch.setattr(mqtt, "LONGEST_DELAY_MS", 500)
    with guarded.unharmed():
        yield guarded


def aged(fleet: Battlefield, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Identity:
    """The device renews at a time that is more than a certificate's life ago."""
    held = Identity.copy(fleet, folder, folder.name)
    long_ago_ms = SystemClock().now_ms() - 8 * DAY_MS
    with monkeypatch.context() as patched:
        patched.setattr(fleet.app.state.authority, "_now_ms", lambda: long_ago_ms)
        assert held.renew().is_success
    (folder / PAIR_FILE).write_bytes(held.pair)
    return held


def test_found_after_its_time(fleet: Battlefield, monkeypatch: pytest.MonkeyPatch) -> None:
    found = aged(fleet, settled(fleet, "found"), monkeypatch)
    assert not found.enters()
    assert refusal(found.fetch()) == (401, "expired_certificate")
    fleet.wait_until(lambda: not fleet.device("found")["online"], "its farewell to be stored")
    # For all that, it is the device's own, until the operator says otherwise.
    old = replace(found)
    assert found.renew().is_success
    assert found.enters() and found.fetch().is_success
    assert refusal(old.fetch()) == (401, "expired_certificate")
    fleet.http.post("/v1/devices/found/retire").raise_for_status()
    assert refusal(old.renew()) == (401, "revoked_certificate")
    assert not old.enters()


def test_device_from_a_drawer(fleet: Battlefield, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = settled(fleet, "drawer")
    held = aged(fleet, folder, monkeypatch)
    renewals = recorded(fleet, "device.renew", "drawer")
    fleet.wait_until(lambda: not fleet.device("drawer")["online"], "the device to be gone")
    with fleet.agent_in(folder) as agent:
        assert answers(fleet, agent)
        fleet.wait_until(lambda: heard(fleet, "drawer"), "the device to be back")
        assert answers(fleet, agent)
    assert (folder / PAIR_FILE).read_bytes() != held.pair
    # Refused by the broker late, while it renews already, it may renew once more.
    since = recorded(fleet, "device.renew", "drawer")[: -len(renewals)]
    assert set(since) == {"done"}
    assert fleet.device("drawer")["alarm"] is None


def test_refused_while_it_believes_to_be_in_time(
    tmp_path: Path,
    workshop: Workshop,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The device's clock says that there is time yet; that it is refused is reason enough."""
    monkeypatch.setattr(mqtt, "LONGEST_DELAY_MS", 500)
    clock = ServerClock()
    # By the device's clock it is due ten minutes from now; the server's will have passed its end.
    clock.ahead_ms = -10 * MINUTE_MS
    field = Battlefield(tmp_path, workshop, clock=clock, device_certificate_hours=1)
    field.open()
    try:
        with field.unharmed():
            held = Identity.copy(field, field.device_folder, DEVICE)
            assert held.fetch().is_success and recorded(field, "device.renew", DEVICE) == []
            clock.ahead_ms = 51 * MINUTE_MS
            field.app.state.expel([DEVICE])
            field.wait_until(lambda: bool(recorded(field, "device.renew", DEVICE)), "it to renew")
            field.wait_until(lambda: heard(field, DEVICE), "it to be back")
            assert set(recorded(field, "device.renew", DEVICE)) == {"done"}
            assert refusal(held.fetch()) == (401, "expired_certificate")
            assert "reason='expired_certificate'" in caplog.text
    finally:
        field.close()

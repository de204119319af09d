"""The folder of a device is copied: a thief, or a disk image, is the same device a second time.

The operator must learn of it, whichever of the two speaks first; and when the device is replaced,
the copy must be out for good.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from device_agent.agent import Agent
from device_agent.shell import mqtt
from device_agent.shell.certificate import PAIR_FILE
from device_agent.shell.workshop import Workshop
from tests.attacks.battlefield import DEADLINE_S, Battlefield
from tests.attacks.identities import (
    Identity,
    answers,
    give_away,
    heard,
    recorded,
    refusal,
    settled,
)
from tests.attacks.insider import MODEL
from tests.attacks.siege import DAY_MS, Clock

pytestmark = pytest.mark.slow
CLONED = "cloned_identity"


@pytest.fixture
def fleet(guarded: Battlefield, monkeypatch: pytest.MonkeyPatch) -> Iterator[Battlefield]:
    monkeypatch.setattr(mqtt, "LONGEST_DELAY_MS", 500)
    with guarded.unharmed():
        yield guarded
        assert guarded.device()["alarm"] is None, "the victim was taken for a copy, too"


@contextmanager
def replaced(fleet: Battlefield, name: str, folder: Path) -> Iterator[Agent]:
    """The operator gives the name to the right device; it runs, and the alarm is over."""
    fleet.enrol(name, give_away(fleet, name))
    with fleet.agent_in(folder) as agent:
        agent.wait_for(MODEL, digest=fleet.stable.digest, timeout_s=DEADLINE_S)
        fleet.wait_until(lambda: heard(fleet, name), "the right device to be heard")
        yield agent
        assert heard(fleet, name) and answers(fleet, agent)
        assert fleet.device(name)["alarm"] is None


def test_two_agents_with_one_identity(fleet: Battlefield) -> None:
    folder = settled(fleet, "twin")
    copy = shutil.copytree(folder, folder.with_name("copy"))
    with fleet.agent_in(copy) as clone:
        with fleet.agent_in(folder) as owner:
            fleet.wait_until(lambda: fleet.device("twin")["alarm"] == CLONED, "the alarm")
            assert answers(fleet, owner, clone)
        assert recorded(fleet, "device.alarm", "twin") == ["done"]
        with replaced(fleet, "twin", folder) as owner:
            births = owner._daemon.state.live.births
            tries = clone._daemon.state.live.births + 4
            assert clone._daemon.wait_until(
                lambda state: state.live.births >= tries and not state.live.connected, DEADLINE_S
            )
            assert owner._daemon.state.live.births == births, "the copy took its place again"
            assert answers(fleet, clone)
            assert refusal(Identity.copy(fleet, copy, "twin").renew()) == (
                401,
                "revoked_certificate",
            )


def test_thief_who_renews_first(fleet: Battlefield, workshop: Workshop) -> None:
    folder = settled(fleet, "sluice")
    thief = Identity.copy(fleet, folder, "sluice")
    held = (folder / PAIR_FILE).read_bytes()
    assert thief.renew().is_success
    # Its time has come: the device renews by itself, too late.
    clock = Clock()
    clock.ahead_ms = 6 * DAY_MS
    with Agent.open(folder, workshop=workshop, clock=clock) as owner:
        fleet.wait_until(lambda: fleet.device("sluice")["alarm"] == CLONED, "the alarm")
        assert answers(fleet, owner)
        assert (folder / PAIR_FILE).read_bytes() == held
    assert "refused" in recorded(fleet, "device.alarm", "sluice")
    with replaced(fleet, "sluice", folder):
        assert refusal(thief.fetch()) == (401, "revoked_certificate")
        assert refusal(thief.renew()) == (401, "revoked_certificate")
        assert not thief.enters()


def test_thief_who_renews_second(fleet: Battlefield) -> None:
    """What he copied was renewed by its owner: with a key of his own he gets nothing for it."""
    folder = settled(fleet, "pump")
    thief, owner = (Identity.copy(fleet, folder, "pump") for _ in range(2))
    assert owner.renew().is_success
    assert refusal(thief.renew()) == (409, CLONED)
    assert fleet.device("pump")["alarm"] == CLONED
    assert recorded(fleet, "device.alarm", "pump") == ["refused"]
    # The alarm takes nothing from the owner, and comes again as long as its cause does.
    assert owner.fetch().is_success and owner.enters()
    assert fleet.http.delete("/v1/devices/pump/alarm").is_success
    assert refusal(thief.renew()) == (409, CLONED)
    assert fleet.device("pump")["alarm"] == CLONED
    with replaced(fleet, "pump", folder):
        assert refusal(thief.renew()) == (401, "revoked_certificate")
        assert refusal(owner.renew()) == (401, "revoked_certificate")

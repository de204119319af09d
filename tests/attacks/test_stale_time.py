"""A device whose clock is wrong, or was set back, is not led to believe what has expired.

Its time never goes behind the latest issue time that it accepted, over restarts too; a clock that
is ahead costs it new transitions, never the model that runs.
"""

from __future__ import annotations

import pytest

from device_agent.core.state import read_record
from fleet_contract.errors import Reason
from tests.attacks.core_scene import CoreScene
from tests.attacks.siege import DAY_MS, Siege
from tests.device_agent.core.toy_device import START_MS, A

YEAR_MS = 365 * DAY_MS


@pytest.mark.parametrize("place", ["directive", "assignment", "stop"])
def test_every_signed_document_moves_the_floor(place: str) -> None:
    scene = CoreScene()
    later_ms = START_MS + DAY_MS
    said = {
        "directive": lambda: scene.authority.directive(issued_ms=later_ms),
        "assignment": lambda: scene.authority.assignment(issued_ms=later_ms),
        "stop": lambda: scene.stop(stopped=False, issued_ms=later_ms),
    }[place]()
    scene.receive(place, said)
    assert scene.device.state.record.time_floor_ms == later_ms
    assert read_record(scene.device.disk).time_floor_ms == later_ms, "it outlives the process"
    scene.device.now_ms = 0  # as after a power cut on a board without a battery
    scene.device.boot()
    scene.device.connect()
    scene.receive("directive", scene.directive(expires_ms=later_ms))
    assert Reason.EXPIRED in scene.device.refusals()
    assert scene.device.running == A.digest


def test_refused_document_does_not_move_the_floor() -> None:
    """Else anybody could push a device's time beyond every expiry."""
    scene = CoreScene()
    before = scene.device.state.record.time_floor_ms
    far_ms = START_MS + 50 * YEAR_MS
    for changes in ({"fleet": "factory"}, {"generation": 9}, {"epoch": 1}, {"expires_ms": 1}):
        scene.receive("directive", scene.directive(issued_ms=far_ms, **changes))
    assert scene.device.state.record.time_floor_ms == before
    scene.obeys()


def test_clock_that_is_years_ahead_takes_nothing_away() -> None:
    scene = CoreScene()
    scene.device.now_ms += 10 * YEAR_MS
    scene.device.wait(1_000)
    scene.device.boot()
    scene.device.connect()
    assert scene.device.running == A.digest
    scene.device.live(60_000)
    assert scene.device.running == A.digest
    scene.device.now_ms = START_MS
    scene.obeys()


def test_metadata_that_expired_by_the_floor_alone(siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    floor_ms = siege.clock.now_ms() + 2 * DAY_MS
    siege.clock.ahead_ms = -YEAR_MS
    siege.refused(release, Reason.EXPIRED, time_floor_ms=floor_ms)
    # The fleet's repository goes on, and is believed at that later time.
    siege.fleet.ahead_ms = 2 * DAY_MS
    siege.fleet.catalogue.renew()
    siege.fetch(release, time_floor_ms=floor_ms)

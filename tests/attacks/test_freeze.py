"""A mirror that stands still is found out when its metadata expire, and cannot hide for longer."""

from __future__ import annotations

from fleet_contract.errors import Reason
from tests.attacks.siege import DAY_MS, Siege


def test_mirror_that_stands_still(siege: Siege) -> None:
    copied = siege.copy()
    release = siege.fleet.release("2.0.0", opset=14)
    siege.replay(copied)
    # For a day it may hide what is new ...
    siege.refused(release, Reason.UNKNOWN_TARGET)
    # ... and after that it is believed no longer, whatever is asked for.
    siege.clock.ahead_ms = siege.fleet.ahead_ms = DAY_MS + 60_000
    siege.refused(release, Reason.EXPIRED)
    siege.give_up()
    siege.fleet.catalogue.renew()
    siege.fetch(release)


def test_clock_set_back_brings_old_metadata_to_life(siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    floor_ms = siege.clock.now_ms() + 2 * DAY_MS
    siege.clock.ahead_ms = -30 * DAY_MS
    # A directive said that it is later than the clock says: that is believed.
    siege.refused(release, Reason.EXPIRED, time_floor_ms=floor_ms)


def test_device_that_was_off_for_a_year(siege: Siege) -> None:
    for _ in range(400):
        siege.fleet.ahead_ms += DAY_MS
        siege.fleet.catalogue.renew()
    release = siege.fleet.release("2.0.0", opset=14)
    siege.clock.ahead_ms = siege.fleet.ahead_ms
    siege.fetch(release)
    assert siege.believed("root") == siege.fleet.catalogue.versions()["root"] > 2


def test_root_that_expired_is_the_last_one_shown(siege: Siege) -> None:
    siege.fleet.ahead_ms = siege.clock.ahead_ms = 200 * DAY_MS
    siege.fleet.catalogue.renew()
    release = siege.fleet.release("2.0.0", opset=14)
    siege.hide("2.root.json")
    # All the rest is fresh: it is the root alone that is not.
    siege.fleet.ahead_ms = siege.clock.ahead_ms = 366 * DAY_MS
    siege.fleet.catalogue.renew()
    siege.refused(release, Reason.EXPIRED)
    siege.give_up()
    siege.fetch(release)

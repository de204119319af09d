"""Agents and the server are killed, or away, in the middle of a rollout: it goes on."""

from __future__ import annotations

import os
import signal

import pytest

from tests.end_to_end.town import (
    CANARY,
    DEVICES,
    FIRST,
    FULL,
    GOOD,
    Town,
    goes_on_predicting,
    plan,
    running,
    stage,
    wait_for_versions,
    wait_until,
)

pytestmark = pytest.mark.slow

# Long enough for somebody to be killed while it lasts.
LONG_CANARY = stage("canary", "canary", 50, soak_ms=4_000)


def in_the_canary(town: Town, cohort: str, *states: str) -> tuple[str, str]:
    """A rollout in the middle of its canary, and its version; all have another one before.

    If it was over before anybody looked, the next goes back to the release before.
    """
    for version in (GOOD, FIRST) * 5:
        rollout = town.start_rollout(cohort, version, plan(LONG_CANARY, FULL))
        if town.catch_stage(rollout, "canary", *states):
            return rollout, version
        ended = town.wait_for_end(rollout)
        assert ended["brief"]["state"] == "completed", ended["explanation"]
    raise AssertionError("no canary was seen while it lasted")


def test_killed_agents_come_back_without_a_model(town: Town) -> None:
    town.make_cohort("killed")
    half = DEVICES // 2
    with town.fleet("killed", devices=half, prefix="lasting") as lasting:
        with town.fleet("killed", devices=half, prefix="mortal") as mortal:
            assert town.roll_out("killed", FIRST)["brief"]["state"] == "completed"
            # A rollout ends before the last device has a model.
            for fleet in (lasting, mortal):
                wait_for_versions(town, fleet, {FIRST: half})
            rollout, version = in_the_canary(town, "killed", "deploying", "soaking")
            for process in mortal.process_ids:
                os.kill(process, signal.SIGKILL)
        with town.fleet("killed", devices=half, prefix="mortal") as mortal:
            # Before a word of the server: a call without a model would be counted.
            assert mortal.status().without_model == 0
            assert set(running(town, mortal)) <= {FIRST, GOOD}
            ended = town.wait_for_end(rollout)
            assert ended["brief"]["state"] == "completed", ended["explanation"]
            wait_for_versions(town, mortal, {version: half})
            wait_for_versions(town, lasting, {version: half})
            for fleet in (lasting, mortal):
                goes_on_predicting(fleet)
            assert mortal.status().without_model == 0


def test_killed_server_stops_predictions_or_forgets_the_rollout(town: Town) -> None:
    town.make_cohort("orphaned")
    with town.fleet("orphaned") as fleet:
        assert town.roll_out("orphaned", FIRST)["brief"]["state"] == "completed"
        rollout, version = in_the_canary(town, "orphaned", "soaking")
        before = town.show(rollout)
        town.kill()
        wait_until(lambda: fleet.status().connected == 0, "the devices to miss the server")
        goes_on_predicting(fleet)
        town.start()
        ended = town.wait_for_end(rollout)
        assert ended["brief"]["state"] == "completed", ended["explanation"]
        # It went on; it did not begin anew.
        assert ended["stages"][0]["began_ms"] == before["stages"][0]["began_ms"]
        wait_for_versions(town, fleet, {version: DEVICES})
        goes_on_predicting(fleet)


def test_device_that_was_away_the_whole_time_stays_behind(town: Town) -> None:
    town.make_cohort("away")
    # One of eight is away: the others have to be enough.
    wanted = plan(CANARY, FULL, success_share=0.7)
    with town.fleet("away", devices=DEVICES - 1, prefix="present") as present:
        with town.fleet("away", devices=1, prefix="absent"):
            assert town.roll_out("away", FIRST)["brief"]["state"] == "completed"
            wait_until(lambda: town.active_on("absent-0001") == FIRST, "it to have a release")
        ended = town.roll_out("away", GOOD, wanted)
        assert ended["brief"]["state"] == "completed", ended["explanation"]
        wait_until(
            lambda: running(town, present) == {GOOD: DEVICES - 1}, "the last device to follow"
        )
        assert town.active_on("absent-0001") == FIRST
        with town.fleet("away", devices=1, prefix="absent") as absent:
            wait_for_versions(town, absent, {GOOD: 1})
            wait_until(lambda: town.active_on("absent-0001") == GOOD, "the server to hear of it")
            goes_on_predicting(absent)
            assert absent.status().without_model == 0

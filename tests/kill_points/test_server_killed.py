"""A server that is killed must neither lose nor repeat what it decided, published or was told."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest

from fleet_contract import topics
from tests.kill_points.light_fleet import LightFleet
from tests.kill_points.server_room import COHORT, FLEET, MODEL, ServerRoom, plan, stage

DEVICES = 10
TOPIC = topics.directive(FLEET, COHORT, MODEL)
GOOD = plan(
    stage("shadow", "shadow", 50), stage("canary-50", "canary", 50), stage("full", "full", 100)
)
AUDITED = "FROM audit_record WHERE json_extract(record, '$.resource_type') = 'rollout'"
NAME = "json_extract(record, '$.resource_name')"
BAD = plan(stage("canary-50", "canary", 50), stage("full", "full", 100))


@pytest.mark.slow
def test_killed_before_and_after_each_commit_and_publish(
    room: ServerRoom, light_fleet: LightFleet
) -> None:
    room.bring_devices(light_fleet, DEVICES)
    first = room.start_rollout("1.0.0", plan(stage("full", "full", 100)))
    room.wait_for_state(first, "completed")
    wait_for_the_last_word(room, light_fleet)
    before = set(light_fleet.devices[0].epochs)
    room.arm()
    began_s = time.monotonic()

    good = room.start_rollout("1.1.0", GOOD)
    room.wait_for_state(good, "completed")
    bad = room.start_rollout("2.0.0", BAD)
    room.wait_for_state(bad, "rolled_back")
    wait_for_the_last_word(room, light_fleet)

    print_moments(room, time.monotonic() - began_s)
    check_every_moment_was_hit(room)
    check_devices(room, light_fleet)
    check_decisions_were_made_once(room, good, bad)
    check_publications(room, light_fleet, (good, bad), before)
    check_telemetry(room, light_fleet)


def wait_for_the_last_word(room: ServerRoom, fleet: LightFleet) -> None:
    """A rollout has ended, and its last directive is out: it is not yet everywhere."""
    ((epoch,),) = room.rows(f"SELECT epoch FROM control_message WHERE topic = '{TOPIC}'")
    room.wait_until(
        lambda: all(device.epochs[-1:] == [epoch] for device in fleet.devices),
        "every device to hear the last directive",
    )


def print_moments(room: ServerRoom, seconds: float) -> None:
    hit = [line.removeprefix("killed ") for line in room.diary() if line.startswith("killed ")]
    print(f"\n{len(hit)} moments in {seconds:.0f} s: {', '.join(hit)}")


def check_every_moment_was_hit(room: ServerRoom) -> None:
    diary = room.diary()
    commits = sum(line.startswith("committed ") for line in diary)
    publications = sum(line.startswith("publication ") for line in diary)
    enumerated = {
        f"{what} {number} {when}"
        for what, count in (("commit", commits), ("publish", publications))
        for number in range(1, count + 1)
        for when in ("before", "after")
    }
    hit = Counter(line.removeprefix("killed ") for line in diary if line.startswith("killed "))
    assert set(hit) == enumerated
    assert max(hit.values()) == 1
    assert len(hit) > 20


def check_devices(room: ServerRoom, fleet: LightFleet) -> None:
    stable = room.releases["1.1.0"].ref.digest
    assert set(fleet.active(MODEL).values()) == {stable}
    shown = room.ask("GET", "/v1/devices")["devices"]
    assert len(shown) == DEVICES
    (runs,) = room.ask("GET", "/v1/cohort-releases")
    assert (runs["version"], runs["release"]) == ("1.1.0", stable)
    for device in fleet.devices:
        assert not device.state.live.refusals, device.name
        assert device.unanswered == 0
        # Every directive once, in order: none older came after a newer one.
        assert device.epochs == sorted(set(device.epochs)), device.name
    tried = {name for device in fleet.devices for name, _ in device.counted}
    assert tried == {release.ref.digest for release in room.releases.values()}


def check_decisions_were_made_once(room: ServerRoom, good: str, bad: str) -> None:
    rows = room.rows(f"SELECT {NAME}, json_extract(record, '$.action') {AUDITED} ORDER BY sequence")
    actions = {
        rollout: [action.removeprefix("rollout.") for name, action in rows if name == rollout]
        for rollout in (good, bad)
    }
    assert actions[good] == ["create", "start", "start_stage", "advance", "advance", "complete"]
    assert actions[bad] == ["create", "start", "start_stage", "roll_back", "confirm_rollback"]


def check_publications(
    room: ServerRoom, fleet: LightFleet, rollouts: tuple[str, str], before: set[int]
) -> None:
    """Every directive that was decided reached the devices, and nothing else did."""
    rows = room.rows(f"SELECT {NAME}, json_extract(record, '$.detail') {AUDITED}")
    decided = {json.loads(detail)["epoch"] for name, detail in rows if name in rollouts} - {0}
    published = [int(line.split()[1]) for line in room.diary() if line.startswith("publication ")]
    assert len(set(published)) == len(published), "one epoch, two documents"
    assert set(published) == decided
    for device in fleet.devices:
        assert set(device.epochs) - before <= decided
        assert device.epochs[-1] == max(decided)


def check_telemetry(room: ServerRoom, fleet: LightFleet) -> None:
    for device in fleet.devices:
        fleet.call(device.finish_windows)

    def all_committed() -> bool:
        for device in fleet.devices:
            fleet.call(device.report)
        time.sleep(0.2)
        return not any(len(device.outbox) for device in fleet.devices)

    room.wait_until(all_committed, "the server to commit every window")
    counted = Counter(
        {
            (device.name, *key): predictions
            for device in fleet.devices
            for key, predictions in device.counted.items()
        }
    )
    assert room.predictions() == counted
    print(f"{counted.total()} predictions, all of them counted once")

"""Guards directives: the arms are exact, only grow, and a rollback brings everybody back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_contract.trust.directive import Activation, Starts, check_arms
from fleet_server.rollouts import directives
from fleet_server.rollouts.decide import arm_size, decide
from fleet_server.rollouts.directives import LIFETIME_MS, Stamp
from fleet_server.rollouts.plan import Stage, StageKind
from fleet_server.rollouts.states import RolloutState

STAMP = Stamp(generation=1, epoch=77, now_ms=5_000)


def directive_of(snapshot, state=RolloutState.RUNNING, stage=None):
    rollout = replace(snapshot.rollout, state=state)
    return directives.build(rollout, snapshot.plan, stage or snapshot.stage, retry=2, stamp=STAMP)


@given(eligible=st.integers(1, 100_000), percent=st.floats(0.001, 100))
def test_arm_without_a_device_or_larger_than_asked(eligible: int, percent: float) -> None:
    size = arm_size(eligible, percent)
    assert 1 <= size <= eligible
    assert size - 1 < eligible * percent / 100 + 1e-6


@pytest.mark.parametrize(("eligible", "percent", "size"), [(60, 5, 3), (60, 25, 15), (7, 1, 1)])
def test_share_is_a_coin_toss(eligible: int, percent: float, size: int) -> None:
    assert arm_size(eligible, percent) == size


@pytest.mark.parametrize("devices", [10, 60, 333])
def test_devices_find_another_arm_than_the_server(fleet, plan, devices: int) -> None:
    snapshot = fleet(seed=devices, devices=devices).snapshot(plan, stage=1)
    directive = directive_of(snapshot)
    check_arms(directive)
    for device in snapshot.devices:
        arm = directive.arm_for(device.name)
        assert (arm is not None) == device.in_arm
    assert sum(device.in_arm for device in snapshot.devices) == arm_size(devices, 25)


def test_growing_arm_loses_a_device(fleet, plan) -> None:
    snapshot = fleet().snapshot(plan)
    before = directive_of(snapshot)
    after = directive_of(snapshot, stage=decide(snapshot).stage)
    names = [device.name for device in snapshot.devices]
    kept = {name for name in names if before.arm_for(name)}
    assert kept < {name for name in names if after.arm_for(name)}


def test_rollback_leaves_somebody_behind(fleet, plan) -> None:
    for stage in range(3):
        snapshot = fleet().snapshot(plan, stage=stage)
        directive = directive_of(snapshot, RolloutState.ROLLING_BACK)
        assert directive.arms == []
        assert directive.default == snapshot.rollout.stable.ref
        assert directive.starts is Starts.OPEN
        assert directive.spread_ms == 0


def test_completion_leaves_somebody_behind(fleet, plan) -> None:
    snapshot = fleet().snapshot(plan, stage=2)
    directive = directive_of(snapshot, RolloutState.COMPLETED)
    assert directive.arms == []
    assert directive.default == snapshot.rollout.candidate.ref
    assert directive.standby == snapshot.rollout.stable.ref


@pytest.mark.parametrize(
    ("state", "starts"),
    [
        (RolloutState.RUNNING, Starts.OPEN),
        (RolloutState.PAUSED, Starts.PAUSED),
        (RolloutState.ABORTED, Starts.CANCELED),
    ],
)
def test_pause_takes_the_candidate_from_those_who_run_it(fleet, plan, state, starts) -> None:
    snapshot = fleet().snapshot(plan, stage=1)
    directive = directive_of(snapshot, state)
    assert directive.starts is starts
    assert directive.arms == directive_of(snapshot).arms
    assert directive.default == snapshot.rollout.stable.ref


def test_shadow_stage_activates_the_candidate(fleet, plan) -> None:
    shadow = Stage(name="shadow", kind=StageKind.SHADOW, percent=10.0, soak_ms=60_000)
    plan = replace(plan, stages=(shadow, *plan.stages))
    assert directive_of(fleet().snapshot(plan)).activation is Activation.SHADOW
    assert directive_of(fleet().snapshot(plan, stage=1)).activation is Activation.ACTIVE


def test_full_stage_misses_a_newcomer(fleet, plan) -> None:
    directive = directive_of(fleet().snapshot(plan, stage=2))
    assert directive.arm_for("device-that-joined-later") is not None
    assert directive.expires_ms - directive.issued_ms == LIFETIME_MS
    assert directive.retry == 2

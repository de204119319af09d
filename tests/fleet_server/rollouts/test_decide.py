"""Guards the decision: never forward on a failed gate or on too little, never back and forth."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_contract.errors import Reason
from fleet_contract.messages.progress import Phase
from fleet_server.rollouts.decide import Kind, decide, inputs_of
from fleet_server.rollouts.gates.result import Verdict
from fleet_server.rollouts.snapshot import DeviceRecord, Snapshot
from fleet_server.rollouts.states import RolloutState, StageState

FORWARD = {Kind.START_STAGE, Kind.ADVANCE, Kind.COMPLETE}


def in_arm(device: DeviceRecord) -> bool:
    return device.in_arm


def with_state(snapshot: Snapshot, state: RolloutState, **fields) -> Snapshot:
    return replace(snapshot, rollout=replace(snapshot.rollout, state=state, **fields))


def test_healthy_stage_advances_and_the_last_completes(fleet, plan) -> None:
    decision = decide(fleet().snapshot(plan))
    assert decision.kind is Kind.ADVANCE
    assert decision.stage is not None and decision.stage.index == 1
    assert decision.evidence is not None and decision.evidence.n_candidate == 3
    assert decide(fleet().snapshot(plan, stage=2)).kind is Kind.COMPLETE


def test_three_canaries_of_sixty_with_drifted_outputs(fleet, behaviour, plan) -> None:
    bad = fleet(seed=3).snapshot(plan, candidate=behaviour(beta=(2.0, 3.0)), elapsed_ms=8_000)
    # It promised what the stable one does.
    promised = replace(bad.rollout.candidate, baseline=bad.rollout.stable.baseline)
    bad = replace(bad, rollout=replace(bad.rollout, candidate=promised))
    decision = decide(bad)
    assert decision.kind is Kind.ROLL_BACK
    assert "top_probability" in decision.reason
    assert decision.stage is not None and decision.stage.state is StageState.FAILED


def test_new_model_that_differs_as_its_baseline_said(fleet, behaviour, plan) -> None:
    other = fleet(seed=3).snapshot(plan, stage=1, candidate=behaviour(beta=(20.0, 2.0)))
    assert decide(other).kind is Kind.ADVANCE


def test_failed_devices_roll_back_before_any_look(fleet, plan, change) -> None:
    snapshot = fleet().snapshot(plan, elapsed_ms=0)
    broken = change(
        snapshot, in_arm, phase=Phase.FAILED, reason=Reason.PROBE_CRASHED, active="a" * 64
    )
    decision = decide(broken)
    assert decision.kind is Kind.ROLL_BACK
    assert decision.evidence is not None and decision.evidence.look == 0


def test_failure_is_ignored_because_the_rollout_is_paused(fleet, plan, change) -> None:
    broken = change(fleet().snapshot(plan), in_arm, phase=Phase.FAILED, active="a" * 64)
    assert decide(with_state(broken, RolloutState.PAUSED)).kind is Kind.ROLL_BACK


def test_paused_rollout_advances(fleet, plan) -> None:
    assert decide(with_state(fleet().snapshot(plan), RolloutState.PAUSED)).kind is Kind.WAIT


def test_failure_without_a_stable_release_to_return_to_holds(fleet, plan, change) -> None:
    snapshot = fleet().snapshot(plan, stage=2)
    broken = change(snapshot, in_arm, phase=Phase.FAILED, active="")
    first = replace(broken, rollout=replace(broken.rollout, stable=None))
    assert decide(first).kind is Kind.HOLD


def test_devices_whose_disks_are_full_condemn_the_release(fleet, plan, change) -> None:
    snapshot = fleet().snapshot(plan, elapsed_ms=0)
    full = change(snapshot, in_arm, phase=Phase.TIMED_OUT, reason=Reason.DISK_FULL, active="a" * 64)
    decision = decide(full)
    assert decision.kind is Kind.WAIT
    late = replace(full, now_ms=full.stage.deadline_at_ms)
    alive = change(late, lambda _: True, last_report_ms=late.now_ms)
    assert decide(alive).kind is Kind.HOLD


def test_stage_without_verdict_is_promoted_at_its_deadline(fleet, plan, change) -> None:
    snapshot = fleet().snapshot(plan)
    empty = change(snapshot, lambda _: True, outputs=None)
    assert decide(empty).kind is Kind.WAIT
    late = replace(empty, now_ms=empty.stage.deadline_at_ms)
    late = change(late, lambda _: True, last_report_ms=late.now_ms)
    decision = decide(late)
    assert decision.kind is Kind.HOLD
    assert decision.stage is not None and decision.stage.state is StageState.INCONCLUSIVE


def test_last_look_is_taken_again_and_again(fleet, plan, change) -> None:
    """What passed the last look is not tested a second time: each look spends alpha."""
    snapshot = change(fleet().snapshot(plan), lambda _: True, outputs=None)
    first = decide(snapshot)
    assert first.evidence is not None
    again = replace(snapshot, stage=first.stage, now_ms=snapshot.now_ms + 1)
    second = decide(again)
    judged = {gate.guardrail.value for gate in second.gates}
    assert judged == {"failure_or_silence", "output_drift"}
    assert second.evidence is None, "the same verdict is stored once"


def test_observation_begins_before_the_arm_runs_the_candidate(fleet, plan, change) -> None:
    snapshot = fleet().snapshot(plan)
    fresh = replace(
        snapshot, stage=replace(snapshot.stage, soaking_since_ms=None, state=StageState.DEPLOYING)
    )
    none = change(fresh, in_arm, active="a" * 64, phase=Phase.DOWNLOADING)
    waiting, soaking = decide(none).stage, decide(fresh).stage
    assert waiting is not None and waiting.soaking_since_ms is None
    assert soaking is not None and soaking.soaking_since_ms == fresh.now_ms


def test_arm_loses_devices_when_it_grows(fleet, plan) -> None:
    snapshot = fleet().snapshot(plan)
    opened = decide(snapshot).stage
    assert opened is not None
    assert opened.arm_last >= snapshot.stage.arm_last
    arm = [device for device in snapshot.devices if device.bucket <= opened.arm_last]
    assert len(arm) == 15


def test_scheduled_rollout_starts_its_first_stage(fleet, plan) -> None:
    snapshot = replace(fleet().snapshot(plan), stage=None)
    decision = decide(with_state(snapshot, RolloutState.SCHEDULED))
    assert decision.kind is Kind.START_STAGE
    assert decision.stage is not None and decision.stage.index == 0


def test_device_that_was_offline_counts_as_fallen_silent(fleet, plan, change) -> None:
    snapshot = replace(fleet().snapshot(plan), stage=None)
    gone = change(snapshot, lambda device: device.name == "device-0007", online=False)
    decision = decide(with_state(gone, RolloutState.SCHEDULED))
    assert decision.stage is not None
    assert decision.stage.not_at_risk == ("device-0007",)


def test_rollback_is_over_before_devices_confirmed(fleet, plan, change) -> None:
    snapshot = with_state(fleet().snapshot(plan), RolloutState.ROLLING_BACK, rollback_epoch=9)
    assert decide(snapshot).kind is Kind.WAIT
    back = change(snapshot, lambda _: True, active="a" * 64, epoch=9)
    assert decide(back).kind is Kind.CONFIRM_ROLLBACK
    one = change(back, lambda device: device.name == "device-0003", epoch=8)
    assert decide(one).kind is Kind.WAIT
    away = change(one, lambda device: device.name == "device-0003", online=False)
    decision = decide(away)
    assert decision.kind is Kind.CONFIRM_ROLLBACK
    assert decision.laggards == ("device-0003",)


def test_whole_fleet_out_of_reach_counts_as_rolled_back(fleet, plan, change) -> None:
    snapshot = with_state(fleet().snapshot(plan), RolloutState.ROLLING_BACK, rollback_epoch=9)
    assert decide(change(snapshot, lambda _: True, online=False)).kind is Kind.WAIT


@pytest.mark.parametrize("state", [RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK])
def test_rolled_back_rollout_goes_forward(fleet, plan, state) -> None:
    for stage in range(3):
        snapshot = with_state(fleet().snapshot(plan, stage=stage), state, rollback_epoch=2)
        assert decide(snapshot).kind not in FORWARD


def test_decision_cannot_be_recomputed_from_its_evidence(fleet, behaviour, plan) -> None:
    snapshot = fleet(seed=5).snapshot(plan, stage=1, candidate=behaviour(latency_us=9_000))
    decision = decide(snapshot)
    stored = msgspec.msgpack.decode(inputs_of(snapshot), type=Snapshot)
    assert decide(stored) == decision
    assert decision.kind is Kind.ROLL_BACK


PHASES = st.sampled_from([None, *Phase])


@st.composite
def snapshots(draw, base: list[Snapshot]) -> Snapshot:
    """A healthy fleet, and then anything that may happen to its devices."""
    snapshot = draw(st.sampled_from(base))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    devices = []
    for device in snapshot.devices:
        if rng.random() < share:
            device = replace(  # noqa: PLW2901
                device,
                phase=rng.choice([None, *Phase]),
                active=str(rng.choice(["", "a" * 64, "c" * 64])),
                online=bool(rng.random() < 0.5),
                eligible=bool(rng.random() < 0.8),
                last_report_ms=int(snapshot.now_ms - rng.integers(0, 100_000)),
                outputs=None if rng.random() < 0.5 else device.outputs,
            )
        devices.append(device)
    rng.shuffle(devices)
    elapsed_ms = draw(st.sampled_from([0, 10_000, 60_000, 500_000, 700_000]))
    stage = replace(
        snapshot.stage,
        soaking_since_ms=draw(st.sampled_from([None, snapshot.now_ms - elapsed_ms])),
        deadline_at_ms=snapshot.now_ms + draw(st.sampled_from([-1, 60_000])),
        looks_done=draw(st.integers(0, 4)),
    )
    state = draw(st.sampled_from(list(RolloutState)))
    rollout = replace(snapshot.rollout, state=state, rollback_epoch=draw(st.integers(0, 2)))
    return replace(snapshot, devices=tuple(devices), stage=stage, rollout=rollout)


@pytest.fixture(scope="module")
def base() -> list[Snapshot]:
    return []


@settings(max_examples=40)
@given(data=st.data())
def test_promotion_on_a_failed_gate_or_on_too_little(data, fleet_type, fixed_plan, base) -> None:
    if not base:
        base.extend(fleet_type(seed=stage).snapshot(fixed_plan, stage=stage) for stage in range(3))
    snapshot = data.draw(snapshots(base))
    decision = decide(snapshot)
    forward = decision.kind in {Kind.ADVANCE, Kind.COMPLETE}
    if any(gate.verdict is Verdict.FAIL for gate in decision.gates):
        assert decision.kind in {Kind.ROLL_BACK, Kind.HOLD, Kind.WAIT}
    if forward:
        stage = snapshot.plan.stages[snapshot.stage.index]
        arm = [device for device in snapshot.devices if device.in_arm and device.eligible]
        done = [d for d in arm if d.active == "c" * 64 and d.phase in (Phase.SUCCEEDED, Phase.IDLE)]
        assert snapshot.rollout.state is RolloutState.RUNNING
        assert len(done) >= stage.minimum_devices
        assert sum(d.trial.predictions for d in arm) >= stage.minimum_predictions
        assert decision.evidence is not None
        assert decision.evidence.decided_ms == snapshot.now_ms
        assert snapshot.stage.soaking_since_ms is not None
        assert snapshot.now_ms - snapshot.stage.soaking_since_ms >= stage.soak_ms
    other = replace(snapshot, devices=snapshot.devices[::-1])
    assert decide(snapshot) == decision == decide(other)

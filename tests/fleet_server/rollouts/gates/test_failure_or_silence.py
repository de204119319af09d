"""Guards the e-process: right values, valid at any time, and silence is failure in both arms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fleet_contract.errors import Reason
from fleet_contract.messages.progress import Phase
from fleet_server.rollouts.gates import failure_or_silence
from fleet_server.rollouts.gates.failure_or_silence import HAZARD_RATIOS, e_process
from fleet_server.rollouts.gates.result import Verdict

ALPHA = 0.05 / 4 / 3


def test_value_by_hand() -> None:
    expected = []
    for ratio in HAZARD_RATIOS:
        first = (ratio * 3 / (ratio * 3 + 57)) / (3 / 60)
        second = (57 / (ratio * 2 + 57)) / (57 / 59)
        expected.append(first * second)
    assert e_process([True, False], 3, 57) == pytest.approx(np.mean(expected))


def test_mean_over_all_outcomes_is_one() -> None:
    """What makes it an e-value: under no difference its expectation is exactly 1."""

    def mean(
        arm: int, control: int, events: int, path: list[bool], start: tuple[int, int]
    ) -> float:
        if not events:
            return e_process(path, *start)
        share = arm / (arm + control)
        total = 0.0
        if arm:
            total += share * mean(arm - 1, control, events - 1, [*path, True], start)
        if control:
            total += (1 - share) * mean(arm, control - 1, events - 1, [*path, False], start)
        return total

    assert mean(3, 9, 6, [], (3, 9)) == pytest.approx(1.0)


def test_false_alarms_by_looking_after_every_event() -> None:
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(400):
        order = rng.permutation([True] * 15 + [False] * 45)[:25].tolist()
        alarms += any(e_process(order[:n], 15, 45) >= 20 for n in range(1, 26))
    assert alarms / 400 <= 0.05


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_three_canaries_that_fail(fleet, plan, change, failing: int) -> None:
    snapshot = fleet().snapshot(plan, elapsed_ms=0)
    names = [device.name for device in snapshot.devices if device.in_arm][:failing]
    broken = change(
        snapshot, lambda d: d.name in names, phase=Phase.FAILED, reason=Reason.GOLDEN_MISMATCH
    )
    result = failure_or_silence.judge(broken, ALPHA)
    assert (result.verdict is Verdict.FAIL) == (failing == 3)
    assert result.figures["failed_devices"] == names


def test_network_that_was_down_condemns_the_candidate(fleet, plan, change) -> None:
    """Everybody is silent: the order says nothing about the arms."""
    failed = 0
    for seed in range(40):
        snapshot = fleet(seed=seed).snapshot(plan, stage=1)
        quiet = change(snapshot, lambda _: True, last_report_ms=1)
        late = replace(quiet, now_ms=quiet.now_ms + 100_000)
        result = failure_or_silence.judge(late, ALPHA)
        failed += result.verdict is Verdict.FAIL
        assert result.figures["failed_or_silent_control"] == 45
    assert failed <= 1


def test_silent_canaries_are_missed(fleet, plan, change) -> None:
    snapshot = fleet().snapshot(plan, stage=1)
    quiet = change(snapshot, lambda d: d.in_arm, last_report_ms=snapshot.stage.began_ms)
    assert failure_or_silence.judge(quiet, ALPHA).verdict is Verdict.FAIL
    # A later upload corrects it.
    heard = change(quiet, lambda d: d.in_arm, last_report_ms=snapshot.now_ms)
    assert failure_or_silence.judge(heard, ALPHA).verdict is Verdict.PASS


def test_earlier_failure_is_counted_in_this_stage(fleet, plan, change) -> None:
    snapshot = fleet().snapshot(plan, elapsed_ms=0)
    broken = change(snapshot, lambda d: d.in_arm, phase=Phase.FAILED, at_risk=False)
    result = failure_or_silence.judge(broken, ALPHA)
    assert result.figures["failed_candidate"] == 0


def test_other_rollouts_failure_is_counted(fleet, plan, change) -> None:
    snapshot = fleet().snapshot(plan, elapsed_ms=0)
    broken = change(snapshot, lambda d: d.in_arm, phase=Phase.FAILED, rollout="another")
    assert failure_or_silence.judge(broken, ALPHA).verdict is Verdict.PASS


@pytest.mark.parametrize(("failing", "verdict"), [(2, Verdict.PASS), (20, Verdict.FAIL)])
def test_no_control(fleet, plan, change, failing: int, verdict: Verdict) -> None:
    snapshot = fleet().snapshot(plan, stage=2)
    names = [device.name for device in snapshot.devices][:failing]
    broken = change(snapshot, lambda d: d.name in names, phase=Phase.FAILED, reason=None)
    result = failure_or_silence.judge(broken, ALPHA)
    assert result.verdict is verdict
    assert result.n_control == 0


def test_silence_without_control_is_the_releases_fault(fleet, plan, change) -> None:
    snapshot = fleet().snapshot(plan, stage=2)
    quiet = change(snapshot, lambda _: True, last_report_ms=1)
    result = failure_or_silence.judge(quiet, ALPHA)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.alarm


def test_server_that_was_down_calls_the_fleet_silent(fleet, plan, change) -> None:
    snapshot = fleet().snapshot(plan, stage=1)
    quiet = change(snapshot, lambda _: True, last_report_ms=1)
    back = replace(quiet, listening_since_ms=quiet.now_ms - 10_000)
    result = failure_or_silence.judge(back, ALPHA)
    assert result.verdict is Verdict.PASS
    assert result.figures["failed_or_silent_control"] == 0


def test_device_without_a_model_yet_falls_silent(fleet, plan, change) -> None:
    """The first release: nobody reports before it runs, however long the download takes."""
    snapshot = change(fleet().snapshot(plan, stage=2), lambda _: True, last_report_ms=None)
    late = replace(snapshot, now_ms=snapshot.now_ms + 10**9)
    assert failure_or_silence.judge(late, ALPHA).figures["silent_candidate"] == 0

"""Guards the error-rate gate: devices are the unit, their past is subtracted, limits hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fleet_server.rollouts.gates import error_rate
from fleet_server.rollouts.gates.result import Verdict
from fleet_server.rollouts.snapshot import Usage

ALPHA = 0.001


def test_difference_by_hand(fleet, plan, change) -> None:
    snapshot = fleet().snapshot(plan, stage=1)
    snapshot = change(snapshot, lambda _: True, before=Usage(1000, 10), after=Usage(1000, 10))
    worse = change(snapshot, lambda d: d.in_arm, after=Usage(1000, 15), trial=Usage(1000, 15))
    result = error_rate.judge(worse, ALPHA, 1)
    assert result.verdict is Verdict.FAIL
    assert result.statistic == pytest.approx(0.005)
    assert result.figures["error_rate_candidate"] == pytest.approx(0.015)
    assert error_rate.judge(snapshot, ALPHA, 1).verdict is Verdict.PASS


def test_difference_too_small_to_matter(fleet, plan, change) -> None:
    snapshot = fleet().snapshot(plan, stage=1)
    same = change(snapshot, lambda _: True, before=Usage(10_000, 10), after=Usage(10_000, 10))
    slightly = change(same, lambda d: d.in_arm, after=Usage(10_000, 11))
    result = error_rate.judge(slightly, ALPHA, 1)
    assert result.evidence < ALPHA
    assert result.verdict is Verdict.PASS


def test_worlds_fault_is_blamed_on_the_candidate(fleet, plan, change) -> None:
    """Both arms break the absolute limit: pause and alert, no rollback."""
    snapshot = fleet().snapshot(plan, stage=1)
    bad = change(snapshot, lambda _: True, after=Usage(1000, 100), trial=Usage(1000, 100))
    result = error_rate.judge(bad, ALPHA, 1)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.alarm
    assert "both arms" in result.detail


def test_device_without_a_past_is_dropped_silently(fleet, plan, change) -> None:
    snapshot = change(fleet().snapshot(plan, stage=1), lambda _: True, before=Usage())
    result = error_rate.judge(snapshot, ALPHA, 1)
    assert result.figures["adjusted_by_own_past"] == 0
    assert result.n_candidate == 15


def test_too_few_predictions(fleet, plan, change) -> None:
    snapshot = change(fleet().snapshot(plan, stage=1), lambda d: d.in_arm, after=Usage(5, 5))
    result = error_rate.judge(snapshot, ALPHA, 1)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert not result.alarm


def test_no_control_needs_the_absolute_limit(fleet, plan, change) -> None:
    snapshot = change(
        fleet().snapshot(plan, stage=2), lambda _: True, before=Usage(1000, 2), after=Usage(1000, 9)
    )
    assert error_rate.judge(snapshot, ALPHA, 1).verdict is Verdict.PASS
    bad = change(snapshot, lambda _: True, after=Usage(1000, 90))
    assert error_rate.judge(bad, ALPHA, 1).verdict is Verdict.FAIL


def test_twice_the_error_rate_on_twenty_canaries(fleet, behaviour, plan) -> None:
    stages = (replace(plan.stages[1], percent=100 / 3), plan.stages[2])
    plan = replace(plan, stages=stages)
    found = 0
    for seed in range(20):
        base = behaviour(error_rate=0.05)
        world = fleet(seed=seed)
        snapshot = world.snapshot(plan, stable=base, candidate=behaviour(error_rate=0.1))
        result = error_rate.judge(snapshot, ALPHA, 1)
        assert result.n_candidate == 20
        found += result.verdict is Verdict.FAIL
    assert found >= 19


def test_pooled_predictions_would_raise_false_alarms(fleet, plan) -> None:
    """The same data that passes by device fails when predictions are pooled."""
    pooled, judged = 0, 0
    for seed in range(60):
        snapshot = fleet(seed=seed, rows=4000).snapshot(plan, stage=1)
        arms = {
            side: [d.after for d in snapshot.devices if d.in_arm is side] for side in (True, False)
        }
        rates = {
            k: sum(u.errors for u in v) / sum(u.predictions for u in v) for k, v in arms.items()
        }
        n = {k: sum(u.predictions for u in v) for k, v in arms.items()}
        mean = np.mean(list(rates.values()))
        z = (rates[True] - rates[False]) / np.sqrt(mean * (1 - mean) * (1 / n[True] + 1 / n[False]))
        pooled += z > 1.645
        judged += error_rate.judge(snapshot, 0.05, 1).verdict is Verdict.FAIL
    assert pooled >= 15
    assert judged <= 6

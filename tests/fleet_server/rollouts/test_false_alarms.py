"""Guards the promise of a plan: how often a release that is no worse is rolled back.

Whole stages with all guardrails and all looks, on correlated predictions.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from fleet_server.rollouts.decide import Kind, decide

ROLLOUTS = 200
LOOKS_MS = (15_000, 60_000)


@pytest.mark.slow
def test_false_alarms_of_a_whole_stage(fleet, plan) -> None:
    """Each look sees fresh data of the same devices, which is worse than growing data."""
    # All of alpha in one stage: what a whole plan may do.
    plan = replace(plan, stages=(replace(plan.stages[1]), plan.stages[2]))
    alarms = 0
    for seed in range(ROLLOUTS):
        stage = None
        for number, elapsed_ms in enumerate(LOOKS_MS):
            world = fleet(seed=seed * 10 + number, rows=200)
            snapshot = world.snapshot(plan, elapsed_ms=elapsed_ms)
            if stage is not None:
                done = replace(snapshot.stage, looks_done=stage.looks_done)
                snapshot = replace(snapshot, stage=done)
            decision = decide(snapshot)
            if decision.kind in (Kind.ROLL_BACK, Kind.HOLD):
                alarms += 1
                break
            stage = decision.stage
    # 5% of 200 are 10; 17 are exceeded once in 50 runs even if 5% were used up entirely.
    assert alarms <= 17


@pytest.mark.slow
def test_power_on_three_of_sixty_and_on_twenty(fleet, behaviour, plan) -> None:
    drift, errors = 0, 0
    for seed in range(25):
        snapshot = fleet(seed=seed, rows=100).snapshot(plan, candidate=behaviour(beta=(2.0, 2.0)))
        stable = snapshot.rollout.stable
        candidate = replace(snapshot.rollout.candidate, baseline=stable.baseline)
        snapshot = replace(snapshot, rollout=replace(snapshot.rollout, candidate=candidate))
        drift += decide(snapshot).kind is Kind.ROLL_BACK
        third = replace(plan, stages=(replace(plan.stages[1], percent=33.0), plan.stages[2]))
        worse = fleet(seed=seed).snapshot(
            third, stable=behaviour(error_rate=0.05), candidate=behaviour(error_rate=0.1)
        )
        worse = replace(
            worse,
            plan=replace(third, guardrails=replace(third.guardrails, error_rate_limit=0.5)),
        )
        errors += decide(worse).kind is Kind.ROLL_BACK
    assert drift == 25
    assert errors >= 23

"""Guards the drift gate: the candidate's own baseline, the concurrent control, few canaries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fleet_contract.features import FeatureSet
from fleet_contract.sketches.features import FeatureSketches
from fleet_server.rollouts.gates import output_drift
from fleet_server.rollouts.gates.output_drift import histograms
from fleet_server.rollouts.gates.result import Verdict
from fleet_server.rollouts.plan import Stage, StageKind

ALPHA = 0.05 / 5 / 3 / 3


def promised(snapshot):
    """The candidate promised what the stable release does."""
    rollout = snapshot.rollout
    candidate = replace(rollout.candidate, baseline=rollout.stable.baseline)
    return replace(snapshot, rollout=replace(rollout, candidate=candidate))


@pytest.mark.parametrize("seed", range(5))
def test_gross_drift_on_three_of_sixty(fleet, behaviour, plan, seed: int) -> None:
    snapshot = fleet(seed=seed, rows=60).snapshot(plan, candidate=behaviour(beta=(2.0, 2.0)))
    result = output_drift.judge(promised(snapshot), ALPHA, 1)
    assert result.verdict is Verdict.FAIL
    assert result.n_candidate == 3
    assert result.evidence == pytest.approx(1 / 34220)
    assert result.figures["feature"] == "top_probability"
    assert len(result.figures["distribution_candidate"]) == 33


def test_drift_of_everybody_is_blamed_on_the_candidate(fleet, behaviour, plan) -> None:
    snapshot = fleet(seed=1).snapshot(plan, stage=1, stable=behaviour(beta=(2.0, 2.0)))
    undrifted = fleet(seed=1).baseline(behaviour())
    rollout = snapshot.rollout
    both = replace(
        rollout,
        candidate=replace(rollout.candidate, baseline=undrifted),
        stable=replace(rollout.stable, baseline=undrifted),
    )
    result = output_drift.judge(replace(snapshot, rollout=both), ALPHA, 1)
    assert result.verdict is Verdict.PASS
    assert max(result.figures["shifts_candidate"]) > 0.3
    assert max(result.figures["shifts_control"]) > 0.3


def test_distance_by_hand(fleet, plan, change) -> None:
    """All devices alike: the shift is Hellinger's distance of the two histograms."""
    snapshot = fleet().snapshot(plan, stage=1)
    base = histograms(snapshot.rollout.candidate.baseline)[0]
    sketch = snapshot.devices[0].outputs
    alike = change(snapshot, lambda _: True, outputs=sketch)
    result = output_drift.judge(alike, ALPHA, 1)
    own = histograms(sketch)[0]
    p, q = own / own.sum(), base / base.sum()
    expected = np.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum() / 2)
    assert result.figures["features"][0] == "top_probability"
    assert result.figures["shifts_candidate"][0] == pytest.approx(expected, abs=1e-6)
    assert result.evidence == pytest.approx(1.0)


def test_arm_that_has_seen_fewer_rows_looks_drifted(fleet, plan) -> None:
    """Fewer rows scatter more; thinning everybody to the same number takes that away."""
    alarms = 0
    for seed in range(30):
        full = fleet(seed=seed, rows=800).snapshot(plan, stage=1)
        few = fleet(seed=seed + 1000, rows=40).snapshot(plan, stage=1)
        devices = tuple(
            replace(device, outputs=other.outputs) if device.in_arm else device
            for device, other in zip(full.devices, few.devices, strict=True)
        )
        result = output_drift.judge(replace(full, devices=devices), 0.05, 1)
        alarms += result.evidence <= 0.05
    assert alarms <= 5


def test_same_seed_gives_another_result(fleet, plan) -> None:
    snapshot = fleet(seed=4).snapshot(plan, stage=1)
    assert output_drift.judge(snapshot, ALPHA, 2) == output_drift.judge(snapshot, ALPHA, 2)
    other = output_drift.judge(snapshot, ALPHA, 3)
    assert other.seed != output_drift.judge(snapshot, ALPHA, 2).seed
    assert other.figures["labellings"] >= 20 / ALPHA


def test_release_with_other_outputs(fleet, plan) -> None:
    snapshot = fleet().snapshot(plan, stage=1)
    rollout = snapshot.rollout
    bare = replace(rollout.candidate, outputs=FeatureSet(), baseline=FeatureSketches([], []))
    devices = tuple(
        replace(d, outputs=FeatureSketches([], [])) if d.in_arm else d for d in snapshot.devices
    )
    snapshot = replace(snapshot, rollout=replace(rollout, candidate=bare), devices=devices)
    result = output_drift.judge(snapshot, ALPHA, 1)
    assert result.verdict is Verdict.PASS
    assert "no output feature in common" in result.detail


def test_too_few_outputs(fleet, plan, change) -> None:
    snapshot = change(fleet().snapshot(plan), lambda d: d.in_arm, outputs=None)
    assert output_drift.judge(snapshot, ALPHA, 1).verdict is Verdict.INCONCLUSIVE


def test_shadow_of_a_bad_model_is_seen_before_anybody_waits_for_it(fleet, behaviour, plan) -> None:
    shadow = Stage(name="shadow", kind=StageKind.SHADOW, percent=5.0, soak_ms=60_000)
    plan = replace(plan, stages=(shadow, *plan.stages))
    snapshot = fleet(seed=2).snapshot(plan, candidate=behaviour(beta=(2.0, 2.0)))
    assert output_drift.judge(promised(snapshot), ALPHA, 1).verdict is Verdict.FAIL

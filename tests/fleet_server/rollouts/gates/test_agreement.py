"""Guards the shadow's agreement: an interval over devices decides, not a single figure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from fleet_contract.features import FeatureSet
from fleet_contract.messages.report import Pairs
from fleet_server.rollouts.gates import agreement
from fleet_server.rollouts.gates.agreement import interval
from fleet_server.rollouts.gates.result import Verdict
from fleet_server.rollouts.plan import Stage, StageKind


@pytest.fixture
def shadow(fleet, plan):
    stage = Stage(name="shadow", kind=StageKind.SHADOW, percent=10.0, soak_ms=60_000)
    return fleet(seed=1).snapshot(replace(plan, stages=(stage, *plan.stages)))


@pytest.mark.parametrize(
    ("share", "verdict"), [(95, Verdict.PASS), (50, Verdict.INCONCLUSIVE), (8, Verdict.FAIL)]
)
def test_share_of_pairs(shadow, change, share: int, verdict: Verdict) -> None:
    snapshot = change(shadow, lambda d: d.in_arm, pairs=Pairs(100, share, 0))
    assert agreement.judge(snapshot, 0.001, 1).verdict is verdict


def test_interval_is_students_t() -> None:
    shares = np.array([0.9, 0.8, 0.95, 0.7])
    low, high = interval(shares, 4_000, 0.05)
    expected = stats.t.interval(0.95, 3, loc=shares.mean(), scale=stats.sem(shares))
    assert (low, high) == pytest.approx((expected[0], min(1.0, expected[1])))


def test_perfect_agreement_on_few_pairs_is_taken_for_certain() -> None:
    low, _ = interval(np.array([1.0]), 30, 0.001)
    assert 0.7 < low < 0.99


def test_outputs_that_name_no_class(shadow) -> None:
    bare = replace(shadow.rollout.candidate, outputs=FeatureSet())
    snapshot = replace(shadow, rollout=replace(shadow.rollout, candidate=bare))
    assert agreement.judge(snapshot, 0.001, 1).verdict is Verdict.PASS


def test_no_pairs_yet(shadow) -> None:
    assert agreement.judge(shadow, 0.001, 1).verdict is Verdict.INCONCLUSIVE

"""Guards the latency gate: all devices a little slower, and some of them far slower."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_contract.sketches.latency import of as latencies
from fleet_server.rollouts.gates import latency
from fleet_server.rollouts.gates.result import Verdict
from fleet_server.rollouts.snapshot import Usage

ALPHA = 0.001


def usage(p95_us: float) -> Usage:
    return Usage(100, 0, latencies([int(p95_us)] * 100))


def test_factor_by_hand(fleet, plan, change) -> None:
    snapshot = change(
        fleet().snapshot(plan, stage=1), lambda _: True, before=usage(1000), after=usage(1000)
    )
    slow = change(snapshot, lambda d: d.in_arm, after=usage(1500))
    result = latency.judge(slow, ALPHA, 1)
    assert result.verdict is Verdict.FAIL
    assert result.figures["factor"] == pytest.approx(1.5, rel=0.05)
    assert result.figures["worse_candidate"] == 15
    assert latency.judge(snapshot, ALPHA, 1).verdict is Verdict.PASS


def test_some_devices_far_slower(fleet, plan, change) -> None:
    """Ranks alone hardly see this."""
    snapshot = change(
        fleet(devices=240).snapshot(plan, stage=1),
        lambda _: True,
        before=usage(1000),
        after=usage(1000),
    )
    arm = [device.name for device in snapshot.devices if device.in_arm]
    slow = change(snapshot, lambda d: d.name in arm[::5], after=usage(1600))
    result = latency.judge(slow, ALPHA, 1)
    assert result.verdict is Verdict.FAIL
    assert result.figures["p_fisher"] < ALPHA / 2


def test_whole_world_got_slower(fleet, plan, change) -> None:
    snapshot = change(
        fleet().snapshot(plan, stage=1), lambda _: True, before=usage(1000), after=usage(3000)
    )
    assert latency.judge(snapshot, ALPHA, 1).verdict is Verdict.PASS


def test_slower_by_less_than_matters(fleet, plan, change) -> None:
    snapshot = change(
        fleet().snapshot(plan, stage=1), lambda _: True, before=usage(1000), after=usage(1000)
    )
    assert (
        latency.judge(change(snapshot, lambda d: d.in_arm, after=usage(1060)), ALPHA, 1).verdict
        is Verdict.PASS
    )


def test_slow_hardware_in_the_arm(fleet, plan, change) -> None:
    """A device is held against itself: slow ones in the arm are nobody's regression."""
    snapshot = change(
        fleet().snapshot(plan, stage=1), lambda _: True, before=usage(1000), after=usage(1000)
    )
    slow = change(snapshot, lambda d: d.in_arm, before=usage(9000), after=usage(9000))
    assert latency.judge(slow, ALPHA, 1).verdict is Verdict.PASS


def test_few_latencies(fleet, plan, change) -> None:
    snapshot = change(fleet().snapshot(plan, stage=1), lambda d: d.in_arm, after=Usage(3, 0))
    assert latency.judge(snapshot, ALPHA, 1).verdict is Verdict.INCONCLUSIVE
    assert np.isfinite(latency.judge(snapshot, ALPHA, 1).evidence)

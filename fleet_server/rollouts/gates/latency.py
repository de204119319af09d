"""Latency: per-device log ratio of p95 after and before, by arm.

Two tests share alpha: the rank-sum test (Mann and Whitney 1947) sees all devices get a little
slower; Fisher's exact test (1922) on the number of devices that got worse by the plan's ratio sees
some devices get much slower, where ranks have little power (.64 against .99 for +50% on a fifth of
the devices). In a shadow stage this judges the *active* release: what running the candidate beside
it does to those who wait for an answer. Units: natural logarithms of ratios; p95 in microseconds
within the sketch's 2%.
"""

import math

import numpy as np
from scipy import stats

from fleet_contract.sketches.latency import quantile_us
from fleet_server.rollouts.gates.changes import compare
from fleet_server.rollouts.gates.ranks import rank_sum
from fleet_server.rollouts.gates.result import GateResult, Verdict, arms, seed_of, too_few
from fleet_server.rollouts.plan import Guardrail
from fleet_server.rollouts.snapshot import Snapshot, Usage

QUANTILE = 0.95
RESOLUTION = 0.02
"""Changes below this logarithm are within the sketch's error: they are rounded to it."""


def judge(snapshot: Snapshot, alpha: float, look: int) -> GateResult:
    """Judge the latency of what answers."""
    assert snapshot.stage is not None
    arm, control = arms(snapshot)
    rows = snapshot.plan.guardrails.minimum_rows
    ratio = snapshot.plan.guardrails.latency_ratio

    def read(usage: Usage) -> float | None:
        value = quantile_us(usage.latency, QUANTILE) if usage.latency.count >= rows else None
        return math.log(max(value, 1.0)) if value is not None else None

    changes = compare(
        arm,
        control,
        after_candidate=lambda device: read(device.after),
        after_control=lambda device: read(device.after),
        before=lambda device: read(device.before),
        need=snapshot.plan.stages[snapshot.stage.index].minimum_devices,
    )
    if changes is None or not control:
        return too_few(
            Guardrail.LATENCY,
            alpha,
            sum(read(device.after) is not None for device in arm),
            sum(read(device.after) is not None for device in control),
            f"too few devices have {rows} latencies",
        )
    candidate = np.round(changes.candidate / RESOLUTION) * RESOLUTION
    others = np.round(changes.control / RESOLUTION) * RESOLUTION
    seed = seed_of(snapshot, Guardrail.LATENCY, look)
    ranked = rank_sum(candidate, others, alpha=alpha / 2, seed=seed)
    slower = float(np.median(candidate) - np.median(others))
    worse, worse_control, fisher = 0, 0, 1.0
    if changes.adjusted:
        worse = int((candidate > math.log(ratio)).sum())
        worse_control = int((others > math.log(ratio)).sum())
        table = [[worse, len(candidate) - worse], [worse_control, len(others) - worse_control]]
        fisher = float(stats.fisher_exact(table, alternative="greater").pvalue)
    # Half of the ratio in logarithms: all devices a little slower counts before one is far worse.
    bound = math.log(ratio) / 2
    all_slower = ranked.p <= alpha / 2 and slower >= bound
    some_slower = fisher <= alpha / 2
    p = min(1.0, 2 * min(ranked.p, fisher))
    return GateResult(
        guardrail=Guardrail.LATENCY,
        verdict=Verdict.FAIL if all_slower or some_slower else Verdict.PASS,
        statistic=slower,
        bound=bound,
        evidence=p,
        evidence_kind="p",
        alpha=alpha,
        n_candidate=len(candidate),
        n_control=len(others),
        detail=(
            f"p95 changed by a factor of {math.exp(slower):.2f} against the control's; {worse} of "
            f"{len(candidate)} candidate devices and {worse_control} of {len(others)} control "
            f"devices got slower by more than {ratio - 1:.0%} (p = {p:.2g}, alpha = {alpha:.2g})."
        ),
        seed=seed if ranked.method == "drawn" else 0,
        figures={
            "factor": math.exp(slower),
            "worse_candidate": worse,
            "worse_control": worse_control,
            "p_rank_sum": ranked.p,
            "p_fisher": fisher,
            "adjusted_by_own_past": int(changes.adjusted),
            "method": ranked.method,
        },
    )

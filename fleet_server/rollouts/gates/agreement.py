"""Agreement in the shadow: how often candidate and active release name the same class.

The mean over devices of each device's share, with a two-sided t interval over devices (Student
1908) whose width is never below what the number of pairs alone allows. Passes when the whole
interval lies above the plan's least agreement, fails when it lies below. A new model is expected
to differ somewhat; this catches one that says something else altogether. Unit: share of pairs.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from fleet_contract.features import Reduction
from fleet_server.rollouts.gates.result import GateResult, Verdict, arms, too_few
from fleet_server.rollouts.plan import Guardrail
from fleet_server.rollouts.snapshot import Snapshot


def judge(snapshot: Snapshot, alpha: float, look: int) -> GateResult:
    """Judge the pairs of a shadow stage."""
    assert snapshot.stage is not None
    floor = snapshot.plan.guardrails.least_agreement
    outputs = snapshot.rollout.candidate.outputs
    sources = [item.source for item in outputs.categorical]
    sources += [item.source for item in outputs.numeric]
    classes = any(source.reduction is Reduction.TOP_CLASS for source in sources)
    if not classes or not floor:
        return _not_applicable(alpha)
    rows = snapshot.plan.guardrails.minimum_rows
    arm, _ = arms(snapshot)
    pairs = [d.pairs for d in arm if d.pairs is not None and d.pairs.rows >= rows]
    stage = snapshot.plan.stages[snapshot.stage.index]
    if len(pairs) < max(1, min(stage.minimum_devices, len(arm))):
        return too_few(
            Guardrail.AGREEMENT, alpha, len(pairs), 0, f"too few devices have {rows} pairs"
        )
    shares = np.array([item.agreements / item.rows for item in pairs])
    low, high = interval(shares, sum(item.rows for item in pairs), alpha)
    verdict = (
        Verdict.PASS if low >= floor else Verdict.FAIL if high < floor else Verdict.INCONCLUSIVE
    )
    mean = float(shares.mean())
    return GateResult(
        guardrail=Guardrail.AGREEMENT,
        verdict=verdict,
        statistic=mean,
        bound=floor,
        evidence=low,
        evidence_kind="lower bound",
        alpha=alpha,
        n_candidate=len(pairs),
        n_control=len(pairs),
        detail=(
            f"In the shadow both releases named the same class {mean:.1%} of the time on "
            f"{len(pairs)} devices (between {low:.1%} and {high:.1%}); at least {floor:.0%} is "
            "asked for."
        ),
        figures={"low": low, "high": high, "look": look},
    )


def interval(shares: NDArray[np.float64], rows: int, alpha: float) -> tuple[float, float]:
    """Return the bounds of the mean share, each exceeded with probability ``alpha`` / 2.

    Args:
        shares: float64 of shape [devices].
        rows: pairs in all.
        alpha: level of both sides together.
    """
    n, mean = len(shares), float(shares.mean())
    # Laplace's correction keeps the width above zero where every pair agreed.
    smoothed = (mean * rows + 1) / (rows + 2)
    sampling = math.sqrt(smoothed * (1 - smoothed) / rows)
    between = float(shares.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    quantile = float(stats.t.ppf(1 - alpha / 2, n - 1) if n > 1 else stats.norm.ppf(1 - alpha / 2))
    if sampling > between:
        # Devices differ by chance only: the pairs themselves are the sample.
        quantile = float(stats.norm.ppf(1 - alpha / 2))
    width = quantile * max(sampling, between)
    return max(0.0, mean - width), min(1.0, mean + width)


def _not_applicable(alpha: float) -> GateResult:
    return GateResult(
        guardrail=Guardrail.AGREEMENT,
        verdict=Verdict.PASS,
        statistic=1.0,
        bound=0.0,
        evidence=1.0,
        evidence_kind="lower bound",
        alpha=alpha,
        n_candidate=0,
        n_control=0,
        detail="The outputs name no classes that could agree, or the plan asks for no agreement.",
    )

"""Failed predictions: each device's error rate minus its own earlier one, by arm.

One-sided rank-sum test over devices (Mann and Whitney 1947) at a fixed number of looks, alpha
divided by their number (Bonferroni over geometric looks). A difference must be larger than the
plan's least increase to count: in a large fleet anything is significant. An absolute limit guards
what the comparison cannot see; broken alone it asks for a pause: it may be the world's fault.
Units: shares of predictions.
"""

import numpy as np
from scipy import stats

from fleet_server.rollouts.gates.changes import Changes, compare
from fleet_server.rollouts.gates.ranks import rank_sum
from fleet_server.rollouts.gates.result import (
    Figure,
    GateResult,
    Verdict,
    arms,
    seed_of,
    too_few,
)
from fleet_server.rollouts.plan import Guardrail, StageKind
from fleet_server.rollouts.snapshot import DeviceRecord, Snapshot, Usage

CERTAINTY = 0.05
"""Level of the bound on the absolute limit: that one asks for a pause and spends no alpha."""


def judge(snapshot: Snapshot, alpha: float, look: int) -> GateResult:
    """Judge the errors of predictions; in a shadow stage those of the candidate beside."""
    assert snapshot.stage is not None
    arm, control = arms(snapshot)
    stage = snapshot.plan.stages[snapshot.stage.index]
    shadow = stage.kind is StageKind.SHADOW
    rows = snapshot.plan.guardrails.minimum_rows

    def rate(usage: Usage) -> float | None:
        return usage.error_rate if usage.predictions >= rows else None

    def trial(device: DeviceRecord) -> Usage:
        return device.trial if shadow else device.after

    changes = compare(
        arm,
        control,
        after_candidate=lambda device: rate(trial(device)),
        after_control=lambda device: rate(device.after),
        before=lambda device: rate(device.before),
        need=stage.minimum_devices,
    )
    if changes is None:
        return too_few(
            Guardrail.ERROR_RATE,
            alpha,
            sum(rate(trial(device)) is not None for device in arm),
            sum(rate(device.after) is not None for device in control),
            f"too few devices have {rows} predictions",
        )
    seed = seed_of(snapshot, Guardrail.ERROR_RATE, look)
    difference, p, method = _test(changes, alpha, seed)
    breached = _breached([trial(device) for device in arm], snapshot)
    both = bool(control) and _breached([device.after for device in control], snapshot)
    least = snapshot.plan.guardrails.error_rate_increase
    worse = p <= alpha and difference >= least
    if not control:
        # Nobody to compare with but the own past: the absolute limit has to be broken, too.
        worse = breached and (worse or not changes.adjusted)
    verdict = Verdict.FAIL if worse else Verdict.INCONCLUSIVE if breached else Verdict.PASS
    rates = _rates([trial(device) for device in arm])
    control_rates = _rates([device.after for device in control])
    figures: dict[str, Figure] = {
        "error_rate_candidate": rates,
        "error_rate_control": control_rates,
        "limit": snapshot.plan.guardrails.error_rate_limit,
        "adjusted_by_own_past": int(changes.adjusted),
        "method": method,
    }
    detail = (
        f"Predictions failed {rates:.2%} of the time on the candidate's devices and "
        f"{control_rates:.2%} on the control's; the change from each device's own past differs by "
        f"{difference:+.2%} (p = {p:.2g}, alpha = {alpha:.2g})."
    )
    if breached and verdict is Verdict.INCONCLUSIVE:
        whose = "both arms exceed" if both else "the candidate's devices exceed"
        detail += f" But {whose} the limit of {figures['limit']:.2%}."
    return GateResult(
        guardrail=Guardrail.ERROR_RATE,
        verdict=verdict,
        statistic=difference,
        bound=least,
        evidence=p,
        evidence_kind="p",
        alpha=alpha,
        n_candidate=len(changes.candidate),
        n_control=len(changes.control),
        detail=detail,
        alarm=verdict is Verdict.INCONCLUSIVE,
        seed=seed if method == "drawn" else 0,
        figures=figures,
    )


def _test(changes: Changes, alpha: float, seed: int) -> tuple[float, float, str]:
    mean = float(np.mean(changes.candidate))
    if len(changes.control):
        result = rank_sum(changes.candidate, changes.control, alpha=alpha, seed=seed)
        return mean - float(np.mean(changes.control)), result.p, result.method
    # Sign test on those that changed at all.
    up, down = int((changes.candidate > 0).sum()), int((changes.candidate < 0).sum())
    p = float(stats.binom.sf(up - 1, up + down, 0.5)) if changes.adjusted and up else 1.0
    return mean, p, "sign"


def _rates(usages: list[Usage]) -> float:
    """Return the mean of the devices' rates: every device counts the same."""
    found = [usage.error_rate for usage in usages if usage.predictions]
    return float(np.mean(found)) if found else 0.0


def _breached(usages: list[Usage], snapshot: Snapshot) -> bool:
    """Say whether most devices are above the limit, and their sum certainly is."""
    limit = snapshot.plan.guardrails.error_rate_limit
    used = [usage for usage in usages if usage.predictions]
    errors = sum(usage.errors for usage in used)
    predictions = sum(usage.predictions for usage in used)
    above = sum(usage.error_rate > limit for usage in used)
    if not errors or above * 2 <= len(used):
        return False
    return float(stats.beta.ppf(CERTAINTY, errors, predictions - errors + 1)) > limit

"""Devices that fail or fall silent: a log-rank test that may be looked at at any time.

Each event (a device of either arm fails, or falls silent) is a draw from the devices still at
risk: under no difference it hits the arm with probability n1/(n1 + n0). The e-process multiplies
the likelihood ratio of a hazard ratio against 1 over the events, averaged over four ratios fixed
in advance (a mixture of martingales is one). By Ville's inequality it reaches 1/alpha with
probability at most alpha however often it is looked at: Ter Schure, Pérez-Ortiz, Ly, Grünwald,
"The safe logrank test" (2020); Ville, "Étude critique de la notion de collectif" (1939).

Without a control, failures are judged against an absolute share by an exact binomial bound
(Clopper and Pearson 1934); the number of devices is fixed, so looking often costs nothing there.
"""

import hashlib
import math
from collections.abc import Sequence

from scipy import stats

from fleet_server.rollouts.gates.result import Figure, GateResult, Verdict, arms
from fleet_server.rollouts.plan import Guardrail
from fleet_server.rollouts.snapshot import DeviceRecord, Snapshot, failed, silent_since_ms

HAZARD_RATIOS = (2.0, 5.0, 20.0, 100.0)
NAMED = 20
"""Devices named in the figures."""


def judge(snapshot: Snapshot, alpha: float) -> GateResult:
    """Judge failures and silence since the stage began."""
    arm, control = arms(snapshot)
    at_risk_arm = [device for device in arm if device.at_risk]
    at_risk_control = [device for device in control if device.at_risk]
    events = _events(snapshot, [*at_risk_arm, *at_risk_control])
    broken = [device for device in at_risk_arm if failed(device, snapshot.rollout.id)]
    quiet = [device for _, device in events if device.in_arm and device not in broken]
    hit_control = sum(not device.in_arm for _, device in events)
    figures: dict[str, Figure] = {
        "failed_candidate": len(broken),
        "silent_candidate": len(quiet),
        "failed_or_silent_control": hit_control,
        "at_risk_candidate": len(at_risk_arm),
        "at_risk_control": len(at_risk_control),
        "failed_devices": [device.name for device in broken[:NAMED]],
        "silent_devices": [device.name for device in quiet[:NAMED]],
        "reasons": sorted({device.reason.value for device in broken if device.reason is not None}),
    }
    if not at_risk_control:
        return _absolute(snapshot, alpha, broken, quiet, len(at_risk_arm), figures)
    value = e_process(
        [device.in_arm for _, device in events], len(at_risk_arm), len(at_risk_control)
    )
    bound = 1 / alpha
    hit = len(broken) + len(quiet)
    excessive = _lower_bound(hit, len(at_risk_arm), alpha) > snapshot.plan.guardrails.failed_share
    verdict = Verdict.FAIL if value >= bound else Verdict.PASS
    return GateResult(
        guardrail=Guardrail.FAILURE_OR_SILENCE,
        verdict=Verdict.INCONCLUSIVE if excessive and verdict is Verdict.PASS else verdict,
        statistic=hit / len(at_risk_arm) if at_risk_arm else 0.0,
        bound=bound,
        evidence=value,
        evidence_kind="e",
        alpha=alpha,
        n_candidate=len(at_risk_arm),
        n_control=len(at_risk_control),
        detail=(
            f"{len(broken)} failed and {len(quiet)} fell silent of {len(at_risk_arm)} candidate "
            f"devices, {hit_control} of {len(at_risk_control)} control devices: "
            f"e = {value:.3g}, {bound:.3g} rolls back."
        ),
        alarm=excessive and verdict is Verdict.PASS,
        figures=figures,
    )


def e_process(in_arm: Sequence[bool], arm: int, control: int) -> float:
    """Return the e-value of events in their order.

    Args:
        in_arm: per event, whether it hit the arm.
        arm: devices of the arm at risk at the beginning.
        control: devices of the control at risk at the beginning.
    """
    logs = dict.fromkeys(HAZARD_RATIOS, 0.0)
    for hit in in_arm:
        share = arm / (arm + control)
        for ratio in HAZARD_RATIOS:
            expected = ratio * arm / (ratio * arm + control)
            if share < 1 and share > 0:
                logs[ratio] += math.log(expected / share if hit else (1 - expected) / (1 - share))
        if hit:
            arm -= 1
        else:
            control -= 1
    # An e-value beyond this says nothing more, and exp would overflow.
    return sum(math.exp(min(value, 600.0)) for value in logs.values()) / len(logs)


def _events(snapshot: Snapshot, devices: list[DeviceRecord]) -> list[tuple[int, DeviceRecord]]:
    began_ms = snapshot.stage.began_ms if snapshot.stage is not None else snapshot.now_ms
    found = []
    for device in devices:
        quiet_ms = silent_since_ms(device, snapshot, began_ms)
        times = [quiet_ms] if quiet_ms <= snapshot.now_ms else []
        if failed(device, snapshot.rollout.id):
            # A device's own clock decides the order only, and only within the stage.
            times.append(min(max(device.changed_ms, began_ms), snapshot.now_ms))
        if times:
            found.append((min(times), device))
    # Ties in an order that knows nothing of the arms; buckets would.
    return sorted(found, key=lambda item: (item[0], hashlib.sha256(item[1].name.encode()).digest()))


def _absolute(
    snapshot: Snapshot,
    alpha: float,
    broken: list[DeviceRecord],
    quiet: list[DeviceRecord],
    devices: int,
    figures: dict[str, Figure],
) -> GateResult:
    limit = snapshot.plan.guardrails.failed_share
    low = _lower_bound(len(broken), devices, alpha)
    too_quiet = _lower_bound(len(quiet), devices, alpha) > limit
    verdict = Verdict.FAIL if low > limit else Verdict.PASS
    if verdict is Verdict.PASS and (too_quiet or not devices):
        verdict = Verdict.INCONCLUSIVE
    return GateResult(
        guardrail=Guardrail.FAILURE_OR_SILENCE,
        verdict=verdict,
        statistic=len(broken) / devices if devices else 0.0,
        bound=limit,
        evidence=float(stats.binom.sf(len(broken) - 1, devices, limit)) if broken else 1.0,
        evidence_kind="p",
        alpha=alpha,
        n_candidate=devices,
        n_control=0,
        detail=(
            f"{len(broken)} failed and {len(quiet)} fell silent of {devices} devices; without a "
            f"control {limit:.1%} are tolerated, and at least {low:.1%} is certain."
        ),
        alarm=too_quiet and verdict is Verdict.INCONCLUSIVE,
        figures=figures,
    )


def _lower_bound(hits: int, devices: int, alpha: float) -> float:
    """Return the Clopper-Pearson lower bound of a share at level ``alpha``."""
    return float(stats.beta.ppf(alpha, hits, devices - hits + 1)) if hits else 0.0

"""The decision: a snapshot in, what to do next out. Nothing here reads, writes or waits.

Decides when a rollout starts a stage, advances, completes, holds or rolls back, and records what
the decision rests on. A failed guardrail always wins; an unclear one never promotes. The
directive that carries a decision out is built in :mod:`.directives`, and applied by the
controller in one transaction.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from fleet_contract import bucket, codec
from fleet_contract.messages.progress import Phase
from fleet_server.rollouts.gates import (
    agreement,
    error_rate,
    failure_or_silence,
    latency,
    output_drift,
)
from fleet_server.rollouts.gates.result import GateResult, Verdict, arms
from fleet_server.rollouts.plan import Guardrail, StageKind, alpha_of, guardrails_of, has_control
from fleet_server.rollouts.snapshot import (
    DeviceRecord,
    Snapshot,
    StageFacts,
    failed,
    look_due,
    silent_since_ms,
)
from fleet_server.rollouts.states import RolloutState, StageState


class Kind(StrEnum):
    """What a decision does."""

    WAIT = "wait"
    START_STAGE = "start_stage"
    ADVANCE = "advance"
    COMPLETE = "complete"
    ROLL_BACK = "roll_back"
    HOLD = "hold"
    CONFIRM_ROLLBACK = "confirm_rollback"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a decision rests on. ``stage`` is the stage that was judged, -1 for none; ``members``
    is the SHA-256 of the members' sorted names, one a line; ``inputs`` that of :func:`inputs_of`
    the snapshot; ``candidate`` and ``stable`` are digests of manifests.
    """

    decided_ms: int
    stage: int
    look: int
    n_candidate: int
    n_control: int
    members: str
    candidate: str
    stable: str
    inputs: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do next.

    ``stage`` is the stage as it must be stored afterwards (the next one after START_STAGE and
    ADVANCE). ``reason`` is a sentence for a person. ``gates`` are the results of this decision's
    own evaluation; ``evidence`` is there when there is something to keep. ``laggards`` are the
    devices that have not confirmed a rollback.
    """

    kind: Kind
    reason: str
    stage: StageFacts | None
    gates: tuple[GateResult, ...] = ()
    evidence: Evidence | None = None
    laggards: tuple[str, ...] = ()


_LOOKED_AT: dict[Guardrail, Callable[[Snapshot, float, int], GateResult]] = {
    Guardrail.ERROR_RATE: error_rate.judge,
    Guardrail.LATENCY: latency.judge,
    Guardrail.OUTPUT_DRIFT: output_drift.judge,
    Guardrail.AGREEMENT: agreement.judge,
}


def decide(snapshot: Snapshot) -> Decision:
    """Return the decision on a snapshot; the order of its devices does not matter."""
    ordered = tuple(sorted(snapshot.devices, key=lambda device: device.name))
    snapshot = replace(snapshot, devices=ordered)
    match snapshot.rollout.state:
        case RolloutState.SCHEDULED:
            stage = _open(snapshot, 0)
            name = snapshot.plan.stages[0].name
            return _record(
                snapshot, Kind.START_STAGE, f"Stage {name} begins.", stage, look=0, gates=()
            )
        case RolloutState.RUNNING | RolloutState.PAUSED if snapshot.stage is not None:
            return _judge(snapshot, snapshot.stage)
        case RolloutState.ROLLING_BACK:
            return _confirm(snapshot)
        case _:
            return Decision(
                Kind.WAIT, f"The rollout is {snapshot.rollout.state.value}.", snapshot.stage
            )


def inputs_of(snapshot: Snapshot) -> bytes:
    """Return a decision's inputs as MessagePack: equal snapshots give equal bytes."""
    ordered = tuple(sorted(snapshot.devices, key=lambda device: device.name))
    return codec.encode_msgpack(replace(snapshot, devices=ordered))


def arm_size(eligible: int, percent: float) -> int:
    """Return how many of the eligible devices a percentage is: rounded up, at least one."""
    # Rounded first: 5% of 60 is 3 and not 4 because 0.05 is no binary fraction.
    return min(eligible, max(1, math.ceil(round(eligible * percent / 100, 6))))


def runs_candidate(record: DeviceRecord, snapshot: Snapshot, kind: StageKind) -> bool:
    """Say whether a device runs the candidate as far as the stage wants it."""
    digest = snapshot.rollout.candidate.ref.digest
    if kind is StageKind.SHADOW:
        return record.phase is Phase.SHADOWING and record.target == digest
    return record.active == digest


def succeeded(record: DeviceRecord, snapshot: Snapshot, kind: StageKind) -> bool:
    """Say whether a device is done: in the shadow it runs, else its own soak is over, too."""
    if not runs_candidate(record, snapshot, kind):
        return False
    return kind is StageKind.SHADOW or record.phase in (Phase.SUCCEEDED, Phase.IDLE)


def _judge(snapshot: Snapshot, stage: StageFacts) -> Decision:
    planned = snapshot.plan.stages[stage.index]
    arm, control = arms(snapshot)
    looks_before = stage.looks_done
    stage = _soaking(snapshot, stage, arm)
    snapshot = replace(snapshot, stage=stage)
    first = snapshot.rollout.stable is None
    paused = snapshot.rollout.state is RolloutState.PAUSED
    alpha = alpha_of(snapshot.plan, Guardrail.FAILURE_OR_SILENCE, planned.name, first=first)
    failing = failure_or_silence.judge(snapshot, alpha)
    results = [failing]
    look = 0
    if failing.verdict is not Verdict.FAIL and not failing.alarm:
        look = _look(snapshot, stage, arm, paused=paused)
        if look:
            results += _look_at(snapshot, stage, look)
            last = look == snapshot.plan.looks
            passed = {item.guardrail.value for item in results[1:] if item.verdict is Verdict.PASS}
            stage = replace(
                stage,
                looks_done=look,
                passed=tuple(sorted({*stage.passed, *passed})) if last else stage.passed,
            )

    def decision(kind: Kind, reason: str, after: StageFacts = stage) -> Decision:
        if kind is Kind.WAIT and look <= looks_before:
            return Decision(kind, reason, after, tuple(results))
        return _record(snapshot, kind, reason, after, look=look, gates=tuple(results))

    broken = [item for item in results if item.verdict is Verdict.FAIL]
    if broken:
        why = " ".join(item.detail for item in broken)
        if snapshot.rollout.stable is not None:
            ended = replace(stage, state=StageState.FAILED)
            return decision(Kind.ROLL_BACK, f"Stage {planned.name} failed. {why}", ended)
        return _hold(decision, stage, paused, f"Stage {planned.name} failed. {why}")
    alarms = [item for item in results if item.alarm]
    if alarms:
        return _hold(decision, stage, paused, " ".join(item.detail for item in alarms))
    if paused:
        return decision(Kind.WAIT, "The rollout is paused.")
    if look == snapshot.plan.looks:
        judged = set(guardrails_of(planned, first=first)) - {Guardrail.FAILURE_OR_SILENCE}
        if {item.value for item in judged} <= set(stage.passed):
            return _pass(snapshot, decision, stage, len(control))
    if snapshot.now_ms >= stage.deadline_at_ms:
        missing = _missing(snapshot, stage, arm, results)
        return _hold(
            decision, stage, paused, f"Stage {planned.name} reached its deadline: {missing}"
        )
    return decision(Kind.WAIT, _missing(snapshot, stage, arm, results))


def _soaking(snapshot: Snapshot, stage: StageFacts, arm: list[DeviceRecord]) -> StageFacts:
    """Note when the observation time began: once enough of the arm's devices run the candidate."""
    planned = snapshot.plan.stages[stage.index]
    if stage.soaking_since_ms is not None:
        return stage
    running = sum(runs_candidate(device, snapshot, planned.kind) for device in arm)
    if running < _needed(snapshot, stage, arm):
        return stage
    return replace(stage, state=StageState.SOAKING, soaking_since_ms=snapshot.now_ms)


def _needed(snapshot: Snapshot, stage: StageFacts, arm: list[DeviceRecord]) -> int:
    """Return how many devices must run the candidate: the minimum, and a share of those there."""
    share = snapshot.plan.guardrails.success_share
    there = sum(
        silent_since_ms(device, snapshot, stage.began_ms) > snapshot.now_ms for device in arm
    )
    return max(snapshot.plan.stages[stage.index].minimum_devices, math.ceil(share * there - 1e-9))


def _look(snapshot: Snapshot, stage: StageFacts, arm: list[DeviceRecord], *, paused: bool) -> int:
    """Return the look to take now, 0 for none; the last one waits for its minimums."""
    look = look_due(snapshot.plan, stage, snapshot.now_ms)
    if look == snapshot.plan.looks:
        if paused and stage.looks_done == look:
            return 0
        if not _minimums_hold(snapshot, stage, arm):
            # An earlier look that was missed may still be taken.
            return look - 1 if look - 1 > stage.looks_done else 0
    return look


def _minimums_hold(snapshot: Snapshot, stage: StageFacts, arm: list[DeviceRecord]) -> bool:
    planned = snapshot.plan.stages[stage.index]
    done = sum(succeeded(device, snapshot, planned.kind) for device in arm)
    predictions = sum(device.trial.predictions for device in arm)
    return done >= _needed(snapshot, stage, arm) and predictions >= planned.minimum_predictions


def _look_at(snapshot: Snapshot, stage: StageFacts, look: int) -> list[GateResult]:
    planned = snapshot.plan.stages[stage.index]
    first = snapshot.rollout.stable is None
    results = []
    for guardrail in guardrails_of(planned, first=first):
        # What has passed the last look is not asked again: that would be a look more.
        if guardrail in _LOOKED_AT and guardrail.value not in stage.passed:
            alpha = alpha_of(snapshot.plan, guardrail, planned.name, first=first)
            results.append(_LOOKED_AT[guardrail](snapshot, alpha, look))
    return results


def _pass(
    snapshot: Snapshot,
    decision: Callable[[Kind, str, StageFacts], Decision],
    stage: StageFacts,
    control: int,
) -> Decision:
    planned = snapshot.plan.stages[stage.index]
    against = f"against {control} control devices" if has_control(planned) else "without a control"
    if stage.index + 1 == len(snapshot.plan.stages):
        ended = replace(stage, state=StageState.PASSED)
        return decision(
            Kind.COMPLETE, f"Stage {planned.name} passed {against}; the rollout is complete.", ended
        )
    following = snapshot.plan.stages[stage.index + 1]
    return decision(
        Kind.ADVANCE,
        f"Stage {planned.name} passed {against}; stage {following.name} begins.",
        _open(snapshot, stage.index + 1),
    )


def _hold(
    decision: Callable[[Kind, str, StageFacts], Decision],
    stage: StageFacts,
    paused: bool,
    reason: str,
) -> Decision:
    if paused:
        return decision(Kind.WAIT, reason, stage)
    return decision(Kind.HOLD, reason, replace(stage, state=StageState.INCONCLUSIVE))


def _open(snapshot: Snapshot, index: int) -> StageFacts:
    """Return the stage that begins now, with the arm that its percentage of devices fills."""
    planned = snapshot.plan.stages[index]
    eligible = [device for device in snapshot.devices if device.eligible]
    if planned.percent >= 100:
        last = bucket.LAST_BUCKET
    else:
        size = arm_size(len(eligible), planned.percent)
        last = bucket.arm_end((device.bucket for device in eligible), size) or 0
    before = snapshot.stage
    if before is not None and snapshot.plan.stages[before.index].kind is not StageKind.SHADOW:
        # Whoever answers with the candidate keeps it.
        last = max(last, before.arm_last)
    return StageFacts(
        index=index,
        state=StageState.DEPLOYING,
        began_ms=snapshot.now_ms,
        deadline_at_ms=snapshot.now_ms + planned.deadline_ms,
        arm_last=last,
        not_at_risk=tuple(device.name for device in eligible if _lost(device, snapshot, before)),
    )


def _lost(device: DeviceRecord, snapshot: Snapshot, before: StageFacts | None) -> bool:
    """Say whether a device cannot fail or fall silent in the next stage, since it already has."""
    if failed(device, snapshot.rollout.id):
        return True
    if before is None:
        # How often devices reported until now is another plan's business.
        return not device.online
    return silent_since_ms(device, snapshot, before.began_ms) <= snapshot.now_ms


def _confirm(snapshot: Snapshot) -> Decision:
    """Wait until every device that can be reached has confirmed the rollback."""
    waiting = [device for device in snapshot.devices if not confirmed(device, snapshot)]
    names = tuple(device.name for device in waiting)
    there = sum(device.online for device in waiting)
    total = len(snapshot.devices)
    if there or (waiting and len(waiting) == total):
        reason = f"{total - len(waiting)} of {total} devices confirmed the rollback."
        return Decision(Kind.WAIT, reason, snapshot.stage, laggards=names)
    reason = f"{total - len(waiting)} of {total} devices run the stable release again"
    reason += f"; {len(waiting)} cannot be reached and follow when they connect." if names else "."
    decided = _record(snapshot, Kind.CONFIRM_ROLLBACK, reason, snapshot.stage, look=0, gates=())
    return replace(decided, laggards=names)


def confirmed(record: DeviceRecord, snapshot: Snapshot) -> bool:
    """Say whether a device reports that it obeyed the rollback."""
    rollout = snapshot.rollout
    if record.epoch < rollout.rollback_epoch or record.active == rollout.candidate.ref.digest:
        return False
    back = rollout.stable is not None and record.active == rollout.stable.ref.digest
    return back or not record.eligible


def _missing(
    snapshot: Snapshot, stage: StageFacts, arm: list[DeviceRecord], results: list[GateResult]
) -> str:
    """Say what a stage is waiting for, with figures."""
    planned = snapshot.plan.stages[stage.index]
    done = sum(succeeded(device, snapshot, planned.kind) for device in arm)
    needed = _needed(snapshot, stage, arm)
    wants = []
    if done < needed:
        wants.append(f"{done} of {needed} devices are done")
    if stage.soaking_since_ms is not None:
        left_ms = stage.soaking_since_ms + planned.soak_ms - snapshot.now_ms
        if left_ms > 0:
            wants.append(f"{math.ceil(left_ms / 1000)} s of observation are left")
        elif done >= needed and not results[1:]:
            wants.append(f"fewer than {planned.minimum_predictions} predictions are counted")
    wants += [item.detail.rstrip(".") for item in results if item.verdict is Verdict.INCONCLUSIVE]
    return f"{'; '.join(wants) or 'the next look is not due'}."


def _record(
    snapshot: Snapshot,
    kind: Kind,
    reason: str,
    stage: StageFacts | None,
    *,
    look: int,
    gates: tuple[GateResult, ...],
) -> Decision:
    arm, control = arms(snapshot)
    stable = snapshot.rollout.stable
    members = "\n".join(device.name for device in snapshot.devices)
    evidence = Evidence(
        decided_ms=snapshot.now_ms,
        stage=snapshot.stage.index if snapshot.stage is not None else -1,
        look=look,
        n_candidate=len(arm),
        n_control=len(control),
        members=hashlib.sha256(members.encode()).hexdigest(),
        candidate=snapshot.rollout.candidate.ref.digest,
        stable=stable.ref.digest if stable is not None else "",
        inputs=hashlib.sha256(inputs_of(snapshot)).hexdigest(),
    )
    return Decision(kind, reason, stage, gates, evidence)

"""A rollout as operators see it: where it stands, on what evidence, and how far it has reached.

Decides what is shown and how it is explained in a sentence. Nothing is changed here.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlmodel import Session

from fleet_server.devices import service as devices
from fleet_server.rollouts import plan as plans
from fleet_server.rollouts import repository
from fleet_server.rollouts.decide import Kind, arm_size, confirmed, decide
from fleet_server.rollouts.loading import Loaded, ReleaseFactsCache, load
from fleet_server.rollouts.repository import EvidenceRow, MemberRow, RolloutRow, StageRow
from fleet_server.rollouts.snapshot import look_due
from fleet_server.rollouts.states import RolloutState, StageState

EVIDENCE_SHOWN = 50
_SEVERITY = ("fail", "inconclusive", "pass")


@dataclass(frozen=True, slots=True)
class Brief:
    """A rollout in a list."""

    id: str
    cohort: str
    model: str
    version: str
    state: str
    held: bool
    stage: str
    created_ms: int
    started_ms: int
    ended_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class StageView:
    """A stage of the plan and what became of it; times are 0 before they happen."""

    name: str
    kind: str
    percent: float
    state: str
    devices: int
    began_ms: int
    soaking_since_ms: int
    soak_ms: int
    ended_ms: int
    deadline_at_ms: int
    looks_done: int


@dataclass(frozen=True, slots=True)
class RollbackView:
    """How a rollback went: the decision, and when devices confirmed it.

    ``last_changed_ms`` is the latest device's own time of its swap, ``last_seen_ms`` the server's
    time of seeing the last one. ``laggards`` have not confirmed yet.
    """

    decided_ms: int
    epoch: int
    confirmed: int
    members: int
    last_changed_ms: int
    last_seen_ms: int
    laggards: list[str]


@dataclass(frozen=True, slots=True)
class RolloutView:
    """Everything about a rollout. ``exposure`` counts the frozen members by release and phase;
    ``gates`` are the newest results of each guardrail in the present stage.
    """

    now_ms: int
    brief: Brief
    stable_version: str
    candidate: str
    stable: str
    plan: dict[str, Any]
    stages: list[StageView]
    exposure: dict[str, Any]
    gates: list[dict[str, Any]]
    explanation: str
    rollback: RollbackView | None
    evidence: list[dict[str, Any]]


def brief(row: RolloutRow) -> Brief:
    """Return a rollout for a list."""
    plan = repository.plan_of(row)
    return Brief(
        id=row.id,
        cohort=row.cohort,
        model=row.model,
        version=row.version,
        state=row.state,
        held=row.held,
        stage=plan.stages[row.stage].name if row.stage >= 0 else "",
        created_ms=row.created_ms,
        started_ms=row.started_ms,
        ended_ms=row.ended_ms,
        reason=row.reason,
    )


def view(
    session: Session, row: RolloutRow, cache: ReleaseFactsCache, *, now_ms: int
) -> RolloutView:
    """Return everything about a rollout."""
    loaded = load(session, row, cache, now_ms=now_ms, judging=False)
    kept = repository.evidence(session, row.id, count=EVIDENCE_SHOWN)
    gates = _newest_gates(kept, row.stage)
    stable = loaded.snapshot.rollout.stable
    return RolloutView(
        now_ms=now_ms,
        brief=brief(row),
        stable_version=stable.version if stable is not None else "",
        candidate=row.candidate,
        stable=row.stable,
        plan=msgspec.to_builtins(loaded.snapshot.plan),
        stages=_stages(loaded, repository.stages(session, row.id)),
        exposure=_exposure(loaded),
        gates=gates,
        explanation=explain(row, gates, waiting=_waiting_for(loaded)),
        rollback=_rollback(row, loaded, repository.members(session, row.id)),
        evidence=[
            {
                "decided_ms": item.decided_ms,
                "kind": item.kind,
                "stage": item.stage,
                "epoch": item.epoch,
                "inputs": item.inputs,
                "decision": item.decision,
            }
            for item in kept
        ],
    )


def explain(row: RolloutRow, gates: list[dict[str, Any]], *, waiting: str = "") -> str:
    """Say in sentences what state a rollout is in, why, and what it is waiting for."""
    what = f"Rollout {row.id} of {row.model} {row.version} to cohort {row.cohort} is {row.state}"
    what = what.replace("_", " ") + (" because it was held." if row.held else ".")
    worst_first = sorted(gates, key=lambda item: _SEVERITY.index(item["verdict"]))
    details = [item["detail"] for item in worst_first if item["detail"] not in row.reason]
    return " ".join(part for part in (what, row.reason, waiting, *details) if part)


def _waiting_for(loaded: Loaded) -> str:
    snapshot = loaded.snapshot
    if snapshot.rollout.state is not RolloutState.RUNNING:
        return ""
    if look_due(snapshot.plan, snapshot.stage, snapshot.now_ms):
        return "A look at the figures is due."
    decision = decide(snapshot)
    return f"Now: {decision.reason}" if decision.kind is Kind.WAIT else ""


def _newest_gates(kept: Sequence[EvidenceRow], stage: int) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    judged = [item for item in kept if item.stage == stage and item.decision["gates"]]
    # A stage that was not judged yet: what the one before was passed on.
    for item in judged or [item for item in kept if item.decision["gates"]][:1]:
        for gate in item.decision["gates"]:
            found.setdefault(gate["guardrail"], gate)
    return list(found.values())


def _stages(loaded: Loaded, rows: list[StageRow]) -> list[StageView]:
    stored = {row.number: row for row in rows}
    eligible = sum(device.eligible for device in loaded.snapshot.devices)
    views = []
    for number, stage in enumerate(loaded.snapshot.plan.stages):
        row = stored.get(number)
        views.append(
            StageView(
                name=stage.name,
                kind=stage.kind.value,
                percent=stage.percent,
                state=row.state if row is not None else StageState.PENDING.value,
                devices=arm_size(eligible, stage.percent) if eligible else 0,
                began_ms=row.began_ms if row is not None else 0,
                soaking_since_ms=(row.soaking_since_ms or 0) if row is not None else 0,
                soak_ms=stage.soak_ms,
                ended_ms=row.ended_ms if row is not None else 0,
                deadline_at_ms=row.deadline_at_ms if row is not None else 0,
                looks_done=row.looks_done if row is not None else 0,
            )
        )
    return views


def _exposure(loaded: Loaded) -> dict[str, Any]:
    snapshot = loaded.snapshot
    stable = snapshot.rollout.stable
    names = {snapshot.rollout.candidate.ref.digest: "candidate", "": "nothing"}
    if stable is not None:
        names[stable.ref.digest] = "stable"
    arm = [device for device in snapshot.devices if device.in_arm]
    return {
        "members": len(snapshot.devices),
        "eligible": sum(device.eligible for device in snapshot.devices),
        "online": sum(device.online for device in snapshot.devices),
        "arm": len(arm),
        "running": dict(Counter(names.get(d.active, "other") for d in snapshot.devices)),
        "arm_phases": dict(Counter(d.phase.value if d.phase else "unseen" for d in arm)),
    }


def _rollback(row: RolloutRow, loaded: Loaded, members: list[MemberRow]) -> RollbackView | None:
    if not row.rollback_epoch:
        return None
    seen = [member for member in members if member.confirmed_seen_ms]
    pending = row.state == RolloutState.ROLLING_BACK.value
    return RollbackView(
        decided_ms=row.rollback_ms,
        epoch=row.rollback_epoch,
        confirmed=len(seen),
        members=len(members),
        last_changed_ms=max((member.confirmed_changed_ms for member in seen), default=0),
        last_seen_ms=max((member.confirmed_seen_ms for member in seen), default=0),
        laggards=[
            device.name
            for device in loaded.snapshot.devices
            if not confirmed(device, loaded.snapshot)
        ]
        if pending or len(seen) < len(members)
        else [],
    )


def preview(
    session: Session, fleet: str, cohort: str, model: str, plan: plans.RolloutPlan
) -> dict[str, Any]:
    """Return a plan with its arms in devices and its ledger, without starting anything.

    Raises:
        NotFound: if there is no such cohort.
    """
    devices.check_cohort_exists(session, fleet, cohort)
    first = not repository.cohort_release(session, fleet, cohort, model).release
    plan = plans.first_release(plan) if first else plan
    online = sum(device.online for device in devices.members(session, fleet, cohort))
    arms = []
    for stage in plan.stages:
        size = arm_size(online, stage.percent) if online else 0
        arms.append({"stage": stage.name, "candidate": size, "control": online - size})
    return {
        "plan": msgspec.to_builtins(plan),
        "first_release": first,
        "eligible": online,
        "arms": arms,
        "ledger": [msgspec.to_builtins(entry) for entry in plans.ledger(plan, first=first)],
    }

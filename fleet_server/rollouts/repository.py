"""Reads and writes the tables of the rollouts, and turns rows into what the pure modules know."""

import gzip
from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import update
from sqlmodel import Session, col, select

from fleet_contract import bucket, codec
from fleet_server.rollouts import plan as plans
from fleet_server.rollouts.decide import Decision
from fleet_server.rollouts.plan import RolloutPlan
from fleet_server.rollouts.snapshot import StageFacts
from fleet_server.rollouts.states import ACTIVE, RolloutState, StageState
from fleet_server.rollouts.tables import (
    CohortReleaseRow,
    EvidenceRow,
    InputsRow,
    LeaseRow,
    MemberRow,
    RolloutRow,
    StageRow,
)

# What the rest of the domain sees of the tables are these rows, as this module hands them out.
__all__ = ["CohortReleaseRow", "EvidenceRow", "MemberRow", "RolloutRow", "StageRow"]


def save(session: Session, row: RolloutRow | CohortReleaseRow | MemberRow | StageRow) -> None:
    """Write a row with this transaction; a rollout's revision grows."""
    if isinstance(row, RolloutRow):
        row.revision += 1
    session.add(row)
    session.flush()


def new_rollout(**values: object) -> RolloutRow:
    """Return a rollout that is not stored yet."""
    return RolloutRow.model_validate(values)


def find(session: Session, fleet: str, rollout: str, *, lock: bool = False) -> RolloutRow | None:
    """Return a rollout, locked for a change where the database has row locks."""
    query = select(RolloutRow).where(RolloutRow.fleet == fleet, RolloutRow.id == rollout)
    return session.exec(query.with_for_update() if lock else query).first()


def newest(session: Session, fleet: str, *, count: int) -> list[RolloutRow]:
    """Return the newest rollouts first."""
    query = select(RolloutRow).where(RolloutRow.fleet == fleet)
    return list(session.exec(query.order_by(col(RolloutRow.sequence).desc()).limit(count)))


def of_release(session: Session, fleet: str, model: str, version: str) -> list[RolloutRow]:
    """Return the rollouts of a release, the oldest first."""
    query = select(RolloutRow).where(
        RolloutRow.fleet == fleet, RolloutRow.model == model, RolloutRow.version == version
    )
    return list(session.exec(query.order_by(col(RolloutRow.sequence))))


def active(session: Session, fleet: str) -> list[RolloutRow]:
    """Return the rollouts that the controller looks after, the oldest first."""
    states = [state.value for state in ACTIVE]
    query = select(RolloutRow).where(RolloutRow.fleet == fleet, col(RolloutRow.state).in_(states))
    return list(session.exec(query.order_by(col(RolloutRow.sequence))))


def unended(session: Session, fleet: str) -> list[RolloutRow]:
    """Return the rollouts that may still go somewhere, drafts included."""
    ended = (RolloutState.COMPLETED, RolloutState.ABORTED, RolloutState.ROLLED_BACK)
    query = select(RolloutRow).where(
        RolloutRow.fleet == fleet, col(RolloutRow.state).not_in([state.value for state in ended])
    )
    return list(session.exec(query))


def completed(session: Session, fleet: str) -> list[tuple[str, str]]:
    """Return (model, candidate) of every rollout that reached its end, the last to end first."""
    query = (
        select(RolloutRow.model, RolloutRow.candidate)
        .where(RolloutRow.fleet == fleet, RolloutRow.state == RolloutState.COMPLETED.value)
        .order_by(col(RolloutRow.ended_ms).desc(), col(RolloutRow.sequence).desc())
    )
    return [(model, candidate) for model, candidate in session.exec(query)]


def plan_of(row: RolloutRow) -> RolloutPlan:
    """Return a rollout's plan."""
    return plans.read(msgspec.json.decode(row.plan))


def write_plan(plan: RolloutPlan) -> str:
    """Return a plan as it is stored."""
    return codec.encode_json(plan).decode()


def stages(session: Session, rollout: str) -> list[StageRow]:
    """Return the stages that began, in order."""
    query = select(StageRow).where(StageRow.rollout == rollout)
    return list(session.exec(query.order_by(col(StageRow.number))))


def stage_facts(row: StageRow) -> StageFacts:
    """Return a stage as decisions see it."""
    return StageFacts(
        index=row.number,
        state=StageState(row.state),
        began_ms=row.began_ms,
        deadline_at_ms=row.deadline_at_ms,
        arm_last=bucket.read_bucket(row.arm_last),
        not_at_risk=tuple(row.not_at_risk),
        soaking_since_ms=row.soaking_since_ms,
        looks_done=row.looks_done,
        passed=tuple(row.passed),
    )


def put_stage(session: Session, rollout: str, facts: StageFacts, *, ended_ms: int = 0) -> None:
    """Write a stage as a decision left it."""
    row = session.get(StageRow, (rollout, facts.index))
    if row is None:
        row = StageRow(
            rollout=rollout,
            number=facts.index,
            state="",
            began_ms=0,
            deadline_at_ms=0,
            arm_last="",
            not_at_risk=[],
            passed=[],
        )
    row.state = facts.state.value
    row.began_ms = facts.began_ms
    row.ended_ms = ended_ms
    row.deadline_at_ms = facts.deadline_at_ms
    row.arm_last = bucket.write_bucket(facts.arm_last)
    row.not_at_risk = list(facts.not_at_risk)
    row.soaking_since_ms = facts.soaking_since_ms
    row.looks_done = facts.looks_done
    row.passed = list(facts.passed)
    save(session, row)


def freeze_members(session: Session, rollout: str, members: Iterable[tuple[str, bool]]) -> None:
    """Write down who takes part; ``members`` are (device, eligible)."""
    session.add_all(
        MemberRow(rollout=rollout, device=device, eligible=eligible) for device, eligible in members
    )
    session.flush()


def members(session: Session, rollout: str) -> list[MemberRow]:
    """Return the frozen membership in order of names."""
    query = select(MemberRow).where(MemberRow.rollout == rollout)
    return list(session.exec(query.order_by(col(MemberRow.device))))


def note_candidate(
    session: Session, rollout: str, device: str, changed_ms: int, now_ms: int
) -> None:
    """Note when a device was first seen to run the candidate."""
    session.connection().execute(
        update(MemberRow)
        .where(
            col(MemberRow.rollout) == rollout,
            col(MemberRow.device) == device,
            col(MemberRow.candidate_seen_ms) == 0,
        )
        .values(candidate_seen_ms=now_ms, candidate_changed_ms=changed_ms)
    )


def note_confirmed(
    session: Session, rollout: str, device: str, changed_ms: int, now_ms: int
) -> None:
    """Note when a device was first seen to have obeyed the rollback."""
    session.connection().execute(
        update(MemberRow)
        .where(
            col(MemberRow.rollout) == rollout,
            col(MemberRow.device) == device,
            col(MemberRow.confirmed_seen_ms) == 0,
        )
        .values(confirmed_seen_ms=now_ms, confirmed_changed_ms=changed_ms)
    )


def add_evidence(
    session: Session, rollout: str, decision: Decision, inputs: bytes, *, epoch: int
) -> None:
    """Store a decision and what it was made from; equal inputs are stored once."""
    assert decision.evidence is not None
    digest = decision.evidence.inputs
    if session.get(InputsRow, digest) is None:
        # mtime 0: the same inputs give the same file.
        session.add(InputsRow(digest=digest, body=gzip.compress(inputs, 6, mtime=0)))
    session.add(
        EvidenceRow(
            rollout=rollout,
            stage=decision.evidence.stage,
            kind=decision.kind.value,
            decided_ms=decision.evidence.decided_ms,
            epoch=epoch,
            decision=msgspec.to_builtins(decision),
            inputs=digest,
        )
    )
    session.flush()


def evidence(session: Session, rollout: str, *, count: int) -> Sequence[EvidenceRow]:
    """Return the newest evidence first."""
    query = select(EvidenceRow).where(EvidenceRow.rollout == rollout)
    return session.exec(query.order_by(col(EvidenceRow.sequence).desc()).limit(count)).all()


def inputs(session: Session, digest: str) -> bytes | None:
    """Return a decision's inputs as MessagePack, None if there are none of this digest."""
    row = session.get(InputsRow, digest)
    return gzip.decompress(row.body) if row is not None else None


def cohort_release(
    session: Session, fleet: str, cohort: str, model: str, *, lock: bool = False
) -> CohortReleaseRow:
    """Return what a cohort runs of a model; a new row if nothing is known."""
    query = select(CohortReleaseRow).where(
        CohortReleaseRow.fleet == fleet,
        CohortReleaseRow.cohort == cohort,
        CohortReleaseRow.model == model,
    )
    row = session.exec(query.with_for_update() if lock else query).first()
    return row or CohortReleaseRow(fleet=fleet, cohort=cohort, model=model)


def expiring(session: Session, fleet: str, before_ms: int) -> list[CohortReleaseRow]:
    """Return the directives that expire before a time."""
    query = select(CohortReleaseRow).where(
        CohortReleaseRow.fleet == fleet,
        CohortReleaseRow.epoch > 0,
        CohortReleaseRow.expires_ms < before_ms,
    )
    return list(session.exec(query))


def cohort_releases(session: Session, fleet: str) -> list[CohortReleaseRow]:
    """Return what every cohort runs."""
    query = select(CohortReleaseRow).where(CohortReleaseRow.fleet == fleet)
    return list(session.exec(query.order_by(CohortReleaseRow.cohort, CohortReleaseRow.model)))


def lease(session: Session, fleet: str) -> tuple[str, int]:
    """Return (holder, expires_ms) of the controller's lease, empty and 0 for none."""
    row = session.get(LeaseRow, fleet)
    return (row.holder, row.expires_ms) if row is not None else ("", 0)


def take_lease(session: Session, fleet: str, holder: str, *, now_ms: int, expires_ms: int) -> bool:
    """Take or renew the lease; False if somebody else holds it."""
    row = session.exec(select(LeaseRow).where(LeaseRow.fleet == fleet).with_for_update()).first()
    if row is None:
        row = LeaseRow(fleet=fleet, holder=holder, expires_ms=expires_ms)
    elif row.holder != holder and row.expires_ms > now_ms:
        return False
    row.holder, row.expires_ms = holder, expires_ms
    session.add(row)
    session.flush()
    return True


def drop_lease(session: Session, fleet: str, holder: str) -> None:
    """Give the lease up, if this one holds it."""
    row = session.get(LeaseRow, fleet)
    if row is not None and row.holder == holder:
        session.delete(row)
        session.flush()

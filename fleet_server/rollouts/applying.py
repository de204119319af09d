"""Carries decisions out: state, evidence, directive and audit in the caller's transaction.

Decides nothing about a rollout; it writes down what :mod:`.decide` or an operator decided, all of
it or nothing. The caller commits and then wakes the publisher.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
from sqlmodel import Session

from fleet_contract import codec, limits, topics
from fleet_contract.trust.directive import Directive
from fleet_server.audit import service as audit
from fleet_server.dispatch import service as dispatch
from fleet_server.releases import service as releases
from fleet_server.rollouts import directives, repository
from fleet_server.rollouts.decide import Decision, Kind, confirmed, inputs_of
from fleet_server.rollouts.loading import Loaded, ReleaseFactsCache, facts_of, present_stage
from fleet_server.rollouts.plan import StageKind
from fleet_server.rollouts.repository import CohortReleaseRow, RolloutRow
from fleet_server.rollouts.snapshot import StageFacts
from fleet_server.rollouts.states import Action, RolloutState, StageState, advance
from fleet_server.trust.keyring import Keyring


@dataclass(frozen=True, slots=True)
class Author:
    """Who decided, for the audit: a user's name or the system, and the correlation id."""

    user: str
    correlation_id: str


def changes(loaded: Loaded, decision: Decision) -> bool:
    """Say whether there is anything to write."""
    moved = decision.kind is not Kind.WAIT or decision.stage != loaded.snapshot.stage
    return moved or decision.evidence is not None or bool(_fresh(loaded))


def apply(
    session: Session,
    keyring: Keyring,
    cache: ReleaseFactsCache,
    loaded: Loaded,
    decision: Decision,
    *,
    now_ms: int,
) -> bool:
    """Write a decision of the controller.

    Returns:
        False, with nothing written, if the rollout has changed since it was loaded.
    """
    row = repository.find(session, keyring.fleet, loaded.rollout, lock=True)
    if row is None or row.revision != loaded.revision:
        return False
    rolling_back = row.state == RolloutState.ROLLING_BACK
    note = repository.note_confirmed if rolling_back else repository.note_candidate
    for device, changed_ms in _fresh(loaded):
        note(session, row.id, device, changed_ms, now_ms)
    if decision.stage is not None:
        _put_stages(session, row, loaded.snapshot.stage, decision, now_ms)
    if not rolling_back:
        # Why it is rolled back stays; how far that is, the view counts.
        row.reason = decision.reason
    epoch = 0
    if decision.kind is not Kind.WAIT:
        epoch = _move(session, keyring, cache, row, decision, now_ms)
        author = Author(audit.SYSTEM, row.correlation_id)
        record(session, row, decision.kind.value, author, epoch=epoch, now_ms=now_ms)
    if decision.evidence is not None:
        repository.add_evidence(session, row.id, decision, inputs_of(loaded.snapshot), epoch=epoch)
    repository.save(session, row)
    return True


def begin_rollback(
    session: Session, keyring: Keyring, cache: ReleaseFactsCache, row: RolloutRow, *, now_ms: int
) -> int:
    """Bring the stable release back everywhere by one directive; returns its epoch.

    Raises:
        Conflict: if the rollout's state does not allow it.
    """
    row.state = advance(RolloutState(row.state), Action.ROLL_BACK).value
    row.rollback_ms = now_ms
    row.held = False
    runs = repository.cohort_release(session, row.fleet, row.cohort, row.model, lock=True)
    stable = cache.get(session, row.stable)
    runs.release, runs.version = row.stable, stable.version
    row.rollback_epoch = write_directive(session, keyring, cache, row, runs, now_ms=now_ms)
    return row.rollback_epoch


def write_directive(
    session: Session,
    keyring: Keyring,
    cache: ReleaseFactsCache,
    row: RolloutRow,
    runs: CohortReleaseRow | None = None,
    *,
    now_ms: int,
) -> int:
    """Write the directive for a rollout as its row now stands, and return its epoch."""
    if runs is None:
        runs = repository.cohort_release(session, row.fleet, row.cohort, row.model, lock=True)
    runs.rollout = row.id
    directive = directives.build(
        facts_of(session, row, cache),
        repository.plan_of(row),
        present_stage(session, row),
        retry=row.retry,
        stamp=_stamp(session, keyring, now_ms),
    )
    _put(session, keyring, runs, directive, now_ms)
    return directive.epoch


def renew(session: Session, keyring: Keyring, *, now_ms: int) -> int:
    """Sign the directives anew that are past half of their lifetime; returns how many."""
    due = repository.expiring(session, keyring.fleet, now_ms + directives.LIFETIME_MS // 2)
    for runs in due:
        old = codec.decode_json(
            runs.directive.encode(), Directive, limit_bytes=limits.ENVELOPE_BYTES
        )
        stamp = _stamp(session, keyring, now_ms)
        renewed = msgspec.structs.replace(
            old,
            generation=stamp.generation,
            epoch=stamp.epoch,
            issued_ms=now_ms,
            expires_ms=now_ms + directives.LIFETIME_MS,
        )
        _put(session, keyring, runs, renewed, now_ms)
    return len(due)


def record(
    session: Session,
    row: RolloutRow,
    action: str,
    author: Author,
    *,
    epoch: int,
    now_ms: int,
    skipped_safeguards: Sequence[str] = (),
) -> None:
    """Write what happened to a rollout into the audit."""
    stable = releases.release_by_digest(session, row.stable).version if row.stable else ""
    audit.record(
        session,
        action=f"rollout.{action}",
        resource_type="rollout",
        resource_name=row.id,
        outcome="done",
        user=author.user,
        correlation_id=author.correlation_id,
        detail={
            "cohort": row.cohort,
            "state": row.state,
            "stage": row.stage,
            "epoch": epoch,
        },
        now_ms=now_ms,
        model_name=row.model,
        model_version=row.version,
        previous_version=stable,
        rollback_config={"release": row.stable, "version": stable} if stable else None,
        reason=row.reason,
        skipped_safeguards=skipped_safeguards,
    )


def _move(
    session: Session,
    keyring: Keyring,
    cache: ReleaseFactsCache,
    row: RolloutRow,
    decision: Decision,
    now_ms: int,
) -> int:
    """Move the rollout's row, and write the directive if it changes; returns its epoch or 0."""
    state = RolloutState(row.state)
    match decision.kind:
        case Kind.ROLL_BACK:
            return begin_rollback(session, keyring, cache, row, now_ms=now_ms)
        case Kind.CONFIRM_ROLLBACK:
            row.state = advance(state, Action.CONFIRM).value
            row.ended_ms = now_ms
            return 0
        case Kind.HOLD:
            row.state = advance(state, Action.HOLD).value
            row.held = True
        case Kind.COMPLETE:
            row.state = advance(state, Action.FINISH).value
            row.ended_ms = now_ms
            runs = repository.cohort_release(session, row.fleet, row.cohort, row.model, lock=True)
            runs.release, runs.version, runs.previous = row.candidate, row.version, row.stable
            repository.save(session, runs)
        case _:
            assert decision.stage is not None
            if state is RolloutState.SCHEDULED:
                row.state = advance(state, Action.BEGIN).value
            row.stage = decision.stage.index
            kind = repository.plan_of(row).stages[row.stage].kind
            if kind is not StageKind.SHADOW and not row.exposed_ms:
                row.exposed_ms = decision.stage.began_ms
    return write_directive(session, keyring, cache, row, now_ms=now_ms)


def _put_stages(
    session: Session,
    row: RolloutRow,
    before: StageFacts | None,
    decision: Decision,
    now_ms: int,
) -> None:
    assert decision.stage is not None
    if before is not None and before.index != decision.stage.index:
        passed = replace(before, state=StageState.PASSED)
        repository.put_stage(session, row.id, passed, ended_ms=now_ms)
    ended = decision.stage.state in (StageState.PASSED, StageState.FAILED)
    repository.put_stage(session, row.id, decision.stage, ended_ms=now_ms if ended else 0)


def _stamp(session: Session, keyring: Keyring, now_ms: int) -> directives.Stamp:
    epoch = dispatch.next_epoch(session, keyring.fleet, now_ms)
    return directives.Stamp(keyring.generation, epoch, now_ms)


def _put(
    session: Session, keyring: Keyring, runs: CohortReleaseRow, directive: Directive, now_ms: int
) -> None:
    runs.directive = codec.encode_json(directive).decode()
    runs.epoch = directive.epoch
    runs.expires_ms = directive.expires_ms
    repository.save(session, runs)
    dispatch.put_control(
        session,
        fleet=keyring.fleet,
        topic=topics.directive(keyring.fleet, directive.cohort, directive.model),
        epoch=directive.epoch,
        payload=keyring.sign_directive(directive),
        now_ms=now_ms,
    )


def _fresh(loaded: Loaded) -> list[tuple[str, int]]:
    """Return (device, its own time) of those seen for the first time where they should be."""
    snapshot = loaded.snapshot
    digest = snapshot.rollout.candidate.ref.digest
    rolling_back = snapshot.rollout.state is RolloutState.ROLLING_BACK
    return [
        (device.name, device.changed_ms)
        for device in snapshot.devices
        if device.name not in loaded.noted
        and (confirmed(device, snapshot) if rolling_back else device.active == digest)
    ]

"""What operators do to rollouts: create, start, pause, resume, abort, roll back.

Decides which of these is possible and freezes what a rollout is about: its membership, its salt
and its plan. The controller does the rest; only the operator's rollback, pause and abort write a
directive at once, since somebody is waiting.
"""

from collections.abc import Sequence
from dataclasses import replace

from sqlmodel import Session

from fleet_contract import names
from fleet_server.audit import service as audit
from fleet_server.devices import service as devices
from fleet_server.errors import Conflict, NotFound
from fleet_server.releases import lifecycle
from fleet_server.releases import service as releases
from fleet_server.rollouts import plan as plans
from fleet_server.rollouts import repository
from fleet_server.rollouts.applying import Author, begin_rollback, record, write_directive
from fleet_server.rollouts.decide import arm_size
from fleet_server.rollouts.loading import ReleaseFactsCache, membership, present_stage
from fleet_server.rollouts.plan import RolloutPlan
from fleet_server.rollouts.repository import CohortReleaseRow, RolloutRow
from fleet_server.rollouts.states import Action, RolloutState, StageState, advance
from fleet_server.trust.keyring import Keyring

SALT_BYTES = 16
ID_BYTES = 6


def create(
    session: Session,
    *,
    fleet: str,
    cohort: str,
    model: str,
    version: str,
    plan: RolloutPlan,
    random: bytes,
    author: Author,
    now_ms: int,
) -> RolloutRow:
    """Create a draft.

    Args:
        random: at least ``ID_BYTES`` random bytes; they name the rollout.

    Raises:
        NotFound: if there is no such cohort or release.
        Conflict: if the release is not staged, is archived, or is not in production where the
            fleet's environment demands it.
        Invalid: if the plan cannot be carried out.
    """
    devices.check_cohort_exists(session, fleet, cohort)
    release = releases.staged_release(session, model, names.check_version(version))
    lifecycle.check_may_roll_out(session, release)
    row = repository.new_rollout(
        id=random[:ID_BYTES].hex(),
        fleet=fleet,
        cohort=cohort,
        model=model,
        version=release.version,
        candidate=release.digest,
        state=RolloutState.DRAFT.value,
        plan=repository.write_plan(plans.check(plan)),
        created_ms=now_ms,
        created_by=author.user,
        correlation_id=author.correlation_id,
        reason="It is a draft; start it.",
    )
    repository.save(session, row)
    record(session, row, "create", author, epoch=0, now_ms=now_ms)
    return row


def start(
    session: Session, *, fleet: str, rollout: str, random: bytes, author: Author, now_ms: int
) -> RolloutRow:
    """Freeze who takes part and let the controller begin.

    Args:
        random: at least ``SALT_BYTES`` random bytes: the salt, drawn after membership froze.

    Raises:
        NotFound: if there is no such rollout.
        Conflict: if it cannot start: wrong state, another one is under way, too few devices.
    """
    row = get(session, fleet, rollout, lock=True)
    row.state = advance(RolloutState(row.state), Action.START).value
    runs = repository.cohort_release(session, fleet, row.cohort, row.model, lock=True)
    for other in repository.active(session, fleet):
        if (other.cohort, other.model) == (row.cohort, row.model) and other.id != row.id:
            raise Conflict(
                "rollout_under_way",
                f"Rollout {other.id} of {row.model} in {row.cohort} is {other.state}.",
                "Wait for it, or end it: edgefleet rollout abort or rollback.",
            )
    if runs.release == row.candidate:
        raise Conflict(
            "already_running",
            f"Cohort {row.cohort} runs {row.model} {row.version} already.",
            "Push a new version to roll out.",
        )
    plan = repository.plan_of(row)
    if not runs.release:
        plan = plans.first_release(plan)
        row.plan = repository.write_plan(plan)
    releases.check_not_revoked(session, row.candidate)
    candidate = releases.release_by_digest(session, row.candidate)
    # It may have been archived since the draft was made.
    lifecycle.check_may_roll_out(session, candidate)
    manifest = candidate.manifest
    members = membership(session, row, plan, manifest, now_ms=now_ms)
    _check_sizes(row, plan, members)
    repository.freeze_members(session, row.id, members)
    runs.retry += 1
    repository.save(session, runs)
    row.stable = runs.release
    row.retry = runs.retry
    row.salt = random[:SALT_BYTES].hex()
    row.started_ms = now_ms
    row.correlation_id = author.correlation_id
    row.reason = f"It starts with {len(members)} devices."
    repository.save(session, row)
    # Nothing demands these yet; what was done without them has to be seen later all the same.
    skipped = ["approval"] if audit.change_ticket() else ["approval", "change_ticket"]
    if all(stage.kind is not plans.StageKind.SHADOW for stage in plan.stages):
        skipped.append("shadow")
    record(session, row, "start", author, epoch=0, now_ms=now_ms, skipped_safeguards=skipped)
    return row


def pause(
    session: Session,
    keyring: Keyring,
    cache: ReleaseFactsCache,
    *,
    rollout: str,
    author: Author,
    now_ms: int,
) -> RolloutRow:
    """Let nobody start who has not; whoever has goes on, and failures still roll back.

    Raises:
        NotFound: if there is no such rollout.
        Conflict: if it is not running.
    """
    row = get(session, keyring.fleet, rollout, lock=True)
    row.state = advance(RolloutState(row.state), Action.PAUSE).value
    row.reason = f"Paused by {author.user}."
    return _written(session, keyring, cache, row, "pause", author, now_ms)


def resume(
    session: Session,
    keyring: Keyring,
    cache: ReleaseFactsCache,
    *,
    rollout: str,
    author: Author,
    now_ms: int,
) -> RolloutRow:
    """Go on where the rollout was paused or held; the stage gets its whole deadline again.

    Raises:
        NotFound: if there is no such rollout.
        Conflict: if it is not paused.
    """
    row = get(session, keyring.fleet, rollout, lock=True)
    row.state = advance(RolloutState(row.state), Action.RESUME).value
    row.reason, row.held = f"Resumed by {author.user}.", False
    stage = present_stage(session, row)
    if stage is not None:
        planned = repository.plan_of(row).stages[stage.index]
        soaking = stage.soaking_since_ms is not None
        again = replace(
            stage,
            state=StageState.SOAKING if soaking else StageState.DEPLOYING,
            deadline_at_ms=now_ms + planned.deadline_ms,
        )
        repository.put_stage(session, row.id, again)
    return _written(session, keyring, cache, row, "resume", author, now_ms)


def abort(
    session: Session,
    keyring: Keyring,
    cache: ReleaseFactsCache,
    *,
    rollout: str,
    author: Author,
    now_ms: int,
) -> RolloutRow:
    """Cancel what is outstanding; devices that have changed stay as they are.

    Raises:
        NotFound: if there is no such rollout.
        Conflict: if it has ended or rolls back.
    """
    row = get(session, keyring.fleet, rollout, lock=True)
    before = RolloutState(row.state)
    row.state = advance(before, Action.ABORT).value
    row.reason, row.ended_ms = f"Aborted by {author.user}.", now_ms
    if before in (RolloutState.DRAFT, RolloutState.SCHEDULED):
        # No device has heard of it.
        repository.save(session, row)
        record(session, row, "abort", author, epoch=0, now_ms=now_ms)
        return row
    return _written(session, keyring, cache, row, "abort", author, now_ms)


def roll_back(
    session: Session,
    keyring: Keyring,
    cache: ReleaseFactsCache,
    *,
    rollout: str,
    reason: str,
    author: Author,
    now_ms: int,
) -> RolloutRow:
    """Bring back what the cohort ran before, by one directive.

    Raises:
        NotFound: if there is no such rollout.
        Conflict: if it never began, there is nothing to go back to, or a later rollout of the
            model has changed the cohort since.
    """
    row = get(session, keyring.fleet, rollout, lock=True)
    if not row.stable and row.state != RolloutState.DRAFT:
        raise Conflict(
            "nothing_to_return_to",
            f"Cohort {row.cohort} ran no {row.model} before this rollout.",
            "Abort it, or push a working version and roll that out.",
        )
    releases.check_not_revoked(session, row.stable)
    for other in repository.newest(session, keyring.fleet, count=1000):
        same = (other.cohort, other.model) == (row.cohort, row.model) and other.id != row.id
        if same and other.started_ms > row.started_ms:
            raise Conflict(
                "superseded",
                f"Rollout {other.id} of {row.model} started in {row.cohort} after this one.",
                f"Roll that one back: edgefleet rollout rollback {other.id}",
            )
    row.reason = f"Rolled back by {author.user}" + (f": {reason}" if reason else ".")
    epoch = begin_rollback(session, keyring, cache, row, now_ms=now_ms)
    repository.save(session, row)
    record(session, row, "rollback", author, epoch=epoch, now_ms=now_ms)
    return row


def get(session: Session, fleet: str, rollout: str, *, lock: bool = False) -> RolloutRow:
    """Return a rollout.

    Raises:
        NotFound: if there is none of that id.
    """
    row = repository.find(session, fleet, rollout, lock=lock)
    if row is None:
        raise NotFound(
            "no_such_rollout",
            f"There is no rollout {rollout[:80]!r}.",
            "List them: edgefleet rollout list",
        )
    return row


def newest(session: Session, fleet: str, *, count: int) -> list[RolloutRow]:
    """Return the newest rollouts first."""
    return repository.newest(session, fleet, count=count)


def cohort_releases(session: Session, fleet: str) -> list[CohortReleaseRow]:
    """Return what every cohort runs of every model."""
    return repository.cohort_releases(session, fleet)


def needed_releases(session: Session, fleet: str, *, completed: int) -> set[tuple[str, str]]:
    """Return (model, digest of the manifest) of all that a rollout goes to or may return to.

    What cohorts run and ran before, both sides of every rollout that has not ended, drafts
    included, and of each model the last so many that a rollout completed.
    """
    found: set[tuple[str, str]] = set()
    for row in repository.cohort_releases(session, fleet):
        found.update((row.model, digest) for digest in (row.release, row.previous))
    for rollout in repository.unended(session, fleet):
        found.update((rollout.model, digest) for digest in (rollout.candidate, rollout.stable))
    last: dict[str, list[str]] = {}
    for model, digest in repository.completed(session, fleet):
        known = last.setdefault(model, [])
        if digest not in known and len(known) < completed:
            known.append(digest)
    found.update((model, digest) for model, known in last.items() for digest in known)
    return {(model, digest) for model, digest in found if digest}


def inputs(session: Session, digest: str) -> bytes:
    """Return the inputs of a decision as MessagePack.

    Raises:
        NotFound: if nothing was decided on inputs of this digest.
    """
    found = repository.inputs(session, digest)
    if found is None:
        raise NotFound("no_such_inputs", "No decision was made from inputs of this digest.")
    return found


def _check_sizes(row: RolloutRow, plan: RolloutPlan, members: Sequence[tuple[str, bool]]) -> None:
    eligible = sum(fits for _, fits in members)
    if not members:
        raise Conflict(
            "no_eligible_devices",
            f"Cohort {row.cohort} has no devices.",
            "Name another by --cohort; edgefleet cohort list shows how many each has.",
        )
    if not eligible:
        raise Conflict(
            "no_eligible_devices",
            f"None of the {len(members)} devices of cohort {row.cohort} can take part: a device "
            "must have been there lately and a variant of the release must fit it.",
            "See them: edgefleet device list",
        )
    for stage in plan.stages:
        size = arm_size(eligible, stage.percent)
        if size < stage.minimum_devices:
            raise Conflict(
                "too_few_devices",
                f"Stage {stage.name} needs {stage.minimum_devices} devices; {stage.percent:g}% of "
                f"{eligible} eligible ones is {size}.",
                "Raise its percent, lower its minimum_devices, or choose another plan.",
            )


def _written(
    session: Session,
    keyring: Keyring,
    cache: ReleaseFactsCache,
    row: RolloutRow,
    action: str,
    author: Author,
    now_ms: int,
) -> RolloutRow:
    """Save the row, write its directive if devices know of it, and say so in the audit."""
    repository.save(session, row)
    epoch = write_directive(session, keyring, cache, row, now_ms=now_ms) if row.stage >= 0 else 0
    record(session, row, action, author, epoch=epoch, now_ms=now_ms)
    return row

"""Loads the snapshot of a rollout from the database: this domain's rows and other domains' views.

Decides which windows are read, and who is eligible when a rollout starts. Nothing is written and
nothing is decided here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import Session

from fleet_contract.manifest import Manifest, choose_variant
from fleet_server.devices import service as devices
from fleet_server.devices.service import DeviceView
from fleet_server.releases import service as releases
from fleet_server.rollouts import repository
from fleet_server.rollouts.plan import RolloutPlan
from fleet_server.rollouts.repository import RolloutRow
from fleet_server.rollouts.snapshot import (
    ReleaseFacts,
    RolloutFacts,
    Snapshot,
    StageFacts,
    build,
    look_due,
)
from fleet_server.rollouts.states import RolloutState
from fleet_server.telemetry import service as telemetry
from fleet_server.telemetry.service import StoredWindow


@dataclass(frozen=True, slots=True)
class Loaded:
    """A rollout at one revision, and its snapshot. ``noted`` are the devices already seen to run
    the candidate, or, while it rolls back, to have confirmed that.
    """

    rollout: str
    revision: int
    snapshot: Snapshot
    noted: frozenset[str]


class ReleaseFactsCache:
    """Releases never change: what decisions need of one is read and decoded once."""

    def __init__(self) -> None:
        self._facts: dict[str, ReleaseFacts] = {}

    def get(self, session: Session, digest: str) -> ReleaseFacts:
        """Return a release by its manifest's digest.

        Raises:
            NotFound: if there is none.
        """
        found = self._facts.get(digest)
        if found is None:
            view = releases.release_by_digest(session, digest)
            found = ReleaseFacts(
                ref=view.ref,
                version=view.version,
                outputs=view.manifest.features.outputs,
                baseline=view.baseline.outputs,
            )
            self._facts[digest] = found
        return found


def facts_of(session: Session, row: RolloutRow, cache: ReleaseFactsCache) -> RolloutFacts:
    """Return a rollout as decisions see it."""
    return RolloutFacts(
        id=row.id,
        fleet=row.fleet,
        cohort=row.cohort,
        model=row.model,
        state=RolloutState(row.state),
        salt=row.salt,
        candidate=cache.get(session, row.candidate),
        stable=cache.get(session, row.stable) if row.stable else None,
        started_ms=row.started_ms,
        exposed_ms=row.exposed_ms,
        rollback_epoch=row.rollback_epoch,
    )


def present_stage(session: Session, row: RolloutRow) -> StageFacts | None:
    """Return the present stage, None before the first."""
    return next(
        (
            repository.stage_facts(stage)
            for stage in repository.stages(session, row.id)
            if stage.number == row.stage
        ),
        None,
    )


def load(
    session: Session,
    row: RolloutRow,
    cache: ReleaseFactsCache,
    *,
    now_ms: int,
    listening_since_ms: int = 0,
    judging: bool = True,
) -> Loaded:
    """Return the snapshot of a rollout; telemetry windows are read only when a look is due, and
    only for ``judging``.
    """
    plan = repository.plan_of(row)
    facts = facts_of(session, row, cache)
    stage = present_stage(session, row)
    windows: Sequence[StoredWindow] = ()
    paused = facts.state is RolloutState.PAUSED
    # While it is paused the last look is taken once.
    looked = paused and stage is not None and stage.looks_done == plan.looks
    judging = judging and not looked and (paused or facts.state is RolloutState.RUNNING)
    if judging and stage is not None and look_due(plan, stage, now_ms):
        since_ms = (row.exposed_ms or stage.began_ms) - plan.lookback_ms
        windows = telemetry.windows(session, row.fleet, row.model, since_ms=since_ms)
    members = repository.members(session, row.id)
    rolling_back = facts.state is RolloutState.ROLLING_BACK
    snapshot = build(
        facts,
        plan,
        stage,
        members={member.device: member.eligible for member in members},
        devices=devices.members(session, row.fleet, row.cohort),
        windows=windows,
        last_report_ms=telemetry.last_report_ms(session, row.fleet, row.model),
        now_ms=now_ms,
        listening_since_ms=listening_since_ms,
    )
    noted = frozenset(
        member.device
        for member in members
        if (member.confirmed_seen_ms if rolling_back else member.candidate_seen_ms)
    )
    return Loaded(row.id, row.revision, snapshot, noted)


def membership(
    session: Session,
    row: RolloutRow,
    plan: RolloutPlan,
    manifest: Manifest,
    *,
    now_ms: int,
) -> list[tuple[str, bool]]:
    """Return (device, eligible) of the cohort as it is now.

    Eligible is whom a variant fits and who is there: online, or heard of in the lookback. That is
    known before any device is drawn into an arm, so that the arms are comparable.
    """
    heard_ms = telemetry.last_report_ms(session, row.fleet, row.model)

    def eligible(view: DeviceView) -> bool:
        there = view.online or heard_ms.get(view.name, 0) >= now_ms - plan.lookback_ms
        return there and choose_variant(manifest, view.capabilities, view.labels) is not None

    return [(view.name, eligible(view)) for view in devices.members(session, row.fleet, row.cohort)]

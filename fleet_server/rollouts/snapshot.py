"""Everything a decision depends on, time included, as values; and how it is gathered.

Decides which of a device's windows count as before and after, and in which arm a device is. It
reads nothing by itself: the controller and the virtual-time simulator hand in what they have.
Judging is done in :mod:`.gates` and :mod:`.decide`.

Times are milliseconds since 1970 on the server's clock, except where a device's own is named.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fleet_contract import bucket
from fleet_contract.errors import Reason
from fleet_contract.features import FeatureSet
from fleet_contract.messages.progress import ModelProgress, Phase
from fleet_contract.messages.report import Pairs, Role, Window
from fleet_contract.sketches import features as feature_sketches
from fleet_contract.sketches import latency
from fleet_contract.sketches.features import FeatureSketches
from fleet_contract.sketches.latency import LatencySketch
from fleet_contract.trust.directive import ReleaseRef
from fleet_server.rollouts.plan import RolloutPlan, StageKind
from fleet_server.rollouts.states import RolloutState, StageState

NOBODYS_FAILURE = frozenset(
    {
        Reason.DOWNLOAD_FAILED,
        Reason.DISK_FULL,
        Reason.NO_VARIANT,
        Reason.BLOCKED,
        Reason.SUPERSEDED,
        Reason.CANCELED,
        Reason.ROLLED_BACK,
        Reason.STOPPED,
    }
)
"""Reasons that say something about a device, its network or an operator, not about a release."""

NEVER_MS = 2**63 - 1

_ENDED_BADLY = frozenset({Phase.FAILED, Phase.TIMED_OUT, Phase.REJECTED})


@dataclass(frozen=True, slots=True)
class ReleaseFacts:
    """A release as decisions see it: how it is named, what its outputs are and should look like."""

    ref: ReleaseRef
    version: str
    outputs: FeatureSet
    baseline: FeatureSketches


@dataclass(frozen=True, slots=True)
class RolloutFacts:
    """A rollout apart from its present stage.

    ``stable`` is None for the first release of a cohort. ``exposed_ms`` is when the first stage
    began in which the candidate answers, 0 before: what devices did until then is their own
    earlier behaviour. ``rollback_epoch`` is 0 unless the rollout is rolling back.
    """

    id: str
    fleet: str
    cohort: str
    model: str
    state: RolloutState
    salt: str
    candidate: ReleaseFacts
    stable: ReleaseFacts | None
    started_ms: int
    exposed_ms: int
    rollback_epoch: int = 0


@dataclass(frozen=True, slots=True)
class StageFacts:
    """The present stage.

    ``arm_last`` is the last bucket of the candidate's arm. ``not_at_risk`` are the devices that
    had failed or were silent when it began. ``soaking_since_ms`` is None until enough devices run
    the candidate. ``looks_done`` is the number of the last look, ``passed`` the guardrails that
    have already passed the last one.
    """

    index: int
    state: StageState
    began_ms: int
    deadline_at_ms: int
    arm_last: int
    not_at_risk: tuple[str, ...] = ()
    soaking_since_ms: int | None = None
    looks_done: int = 0
    passed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a release did on one device in some windows: counters and latencies."""

    predictions: int = 0
    errors: int = 0
    latency: LatencySketch = latency.EMPTY

    @property
    def error_rate(self) -> float:
        """Share of the predictions that failed, 0 for none."""
        return self.errors / self.predictions if self.predictions else 0.0


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """One member of the cohort.

    ``before`` is the stable release on this device before the first exposure. ``after`` is what
    answered since the stage began: the candidate on a device of the arm that ran it, else whatever
    ran there (a device that fell back stays in its arm). ``trial`` is the candidate alone, in
    whichever role the stage gives it. ``outputs`` are the candidate's in the arm and the stable
    release's in the control.
    """

    name: str
    bucket: int
    eligible: bool
    in_arm: bool
    at_risk: bool
    online: bool
    phase: Phase | None
    reason: Reason | None
    rollout: str
    target: str
    active: str
    epoch: int
    changed_ms: int
    last_report_ms: int | None
    before: Usage
    after: Usage
    trial: Usage
    outputs: FeatureSketches | None
    pairs: Pairs | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole input of a decision; the same snapshot always gives the same decision.

    ``listening_since_ms`` is when the server began to take reports: what it could not hear while
    it was down is nobody's silence.
    """

    now_ms: int
    rollout: RolloutFacts
    plan: RolloutPlan
    stage: StageFacts | None
    devices: tuple[DeviceRecord, ...]
    listening_since_ms: int = 0


class DeviceLike(Protocol):
    """What is needed of a device; the devices domain's view has more."""

    @property
    def name(self) -> str: ...
    @property
    def online(self) -> bool: ...
    @property
    def progress(self) -> Mapping[str, ModelProgress]: ...


class WindowLike(Protocol):
    """A window and when the server first heard of it."""

    @property
    def device(self) -> str: ...
    @property
    def received_ms(self) -> int: ...
    @property
    def window(self) -> Window: ...


def failed(record: DeviceRecord, rollout: str) -> bool:
    """Say whether a device reports a failure in this rollout that is the release's own."""
    return (
        record.phase in _ENDED_BADLY
        and record.rollout == rollout
        and record.reason not in NOBODYS_FAILURE
    )


def silent_since_ms(record: DeviceRecord, snapshot: Snapshot, began_ms: int) -> int:
    """Return when a device counts as silent unless it is heard of until then.

    The same for both arms: ``silence_intervals`` report intervals and a grace after its last
    accepted report, or after the stage began, which changes how often devices report, or after the
    server began to listen. Who has never reported cannot fall silent.
    """
    if record.last_report_ms is None:
        return NEVER_MS
    rails = snapshot.plan.guardrails
    allowance_ms = rails.silence_intervals * snapshot.plan.report_every_ms + rails.silence_grace_ms
    return max(record.last_report_ms, began_ms, snapshot.listening_since_ms) + allowance_ms


def look_due(plan: RolloutPlan, stage: StageFacts | None, now_ms: int) -> int:
    """Return the number of the look that is due, 0 for none.

    Look j of K is due once 2**(j - K) of the soak time is over: few looks, dense at the beginning,
    so that gross harm is found early and alpha is not spent on looking. A missed look is skipped.
    Telemetry windows are needed in a snapshot only when a look is due.
    """
    if stage is None or stage.soaking_since_ms is None:
        return 0
    elapsed_ms = now_ms - stage.soaking_since_ms
    soak_ms = plan.stages[stage.index].soak_ms
    due = [
        look
        for look in range(1, plan.looks + 1)
        if elapsed_ms * 2 ** (plan.looks - look) >= soak_ms
    ]
    latest = max(due, default=0)
    if latest == plan.looks:
        return latest  # the last look stays open until its minimums hold
    return latest if latest > stage.looks_done else 0


def build(
    rollout: RolloutFacts,
    plan: RolloutPlan,
    stage: StageFacts | None,
    *,
    members: Mapping[str, bool],
    devices: Iterable[DeviceLike],
    windows: Iterable[WindowLike],
    last_report_ms: Mapping[str, int],
    now_ms: int,
    listening_since_ms: int = 0,
) -> Snapshot:
    """Gather a snapshot.

    Args:
        rollout: the rollout.
        plan: its plan.
        stage: its present stage, None before the first one.
        members: device → eligible, frozen when the rollout started; others are left out.
        devices: their present state; a member that is missing here counts as never seen.
        windows: of this model; those of other devices and other times are left out.
        last_report_ms: device → when its last report was accepted.
        now_ms: the time of the decision.
        listening_since_ms: when the server began to take reports.
    """
    views = {device.name: device for device in devices}
    per_device: dict[str, list[WindowLike]] = defaultdict(list)
    for item in windows:
        if item.device in members:
            per_device[item.device].append(item)
    shadow = stage is not None and plan.stages[stage.index].kind is StageKind.SHADOW
    records = []
    for name in sorted(members):
        number = bucket.bucket_of(rollout.salt, name)
        in_arm = stage is not None and number <= stage.arm_last
        view = views.get(name)
        progress = view.progress.get(rollout.model) if view is not None else None
        found = _Windows(rollout, stage, per_device.get(name, ()), in_arm=in_arm, shadow=shadow)
        records.append(
            DeviceRecord(
                name=name,
                bucket=number,
                eligible=members[name],
                in_arm=in_arm,
                at_risk=stage is not None and members[name] and name not in stage.not_at_risk,
                online=view.online if view is not None else False,
                phase=progress.phase if progress is not None else None,
                reason=progress.reason if progress is not None else None,
                rollout=progress.rollout if progress is not None else "",
                target=progress.target if progress is not None else "",
                active=progress.active if progress is not None else "",
                epoch=progress.epoch if progress is not None else 0,
                changed_ms=progress.changed_ms if progress is not None else 0,
                last_report_ms=last_report_ms.get(name),
                before=_usage(found.before),
                after=_usage(found.after),
                trial=_usage(found.trial),
                outputs=_outputs(found.compared, found.features),
                pairs=_pairs(found.trial),
            )
        )
    return Snapshot(now_ms, rollout, plan, stage, tuple(records), listening_since_ms)


class _Windows:
    """Sorts one device's windows: before, after, the candidate's trial, and what is compared."""

    def __init__(
        self,
        rollout: RolloutFacts,
        stage: StageFacts | None,
        windows: Sequence[WindowLike],
        *,
        in_arm: bool,
        shadow: bool,
    ) -> None:
        candidate, stable = rollout.candidate, rollout.stable
        stable_digest = stable.ref.digest if stable is not None else ""
        began_ms = stage.began_ms if stage is not None else 0
        exposed_ms = rollout.exposed_ms or began_ms
        # When the server heard of a window first: devices' own clocks need not agree.
        recent = [
            item.window for item in windows if stage is not None and item.received_ms >= began_ms
        ]
        answered = [item for item in recent if item.role is Role.ACTIVE]
        role = Role.SHADOW if shadow else Role.ACTIVE
        self.before = [
            item.window
            for item in windows
            if item.window.role is Role.ACTIVE
            and item.window.release == stable_digest
            and (item.received_ms < exposed_ms or stage is None)
        ]
        tried = [
            item for item in recent if item.role is role and item.release == candidate.ref.digest
        ]
        self.trial = tried if in_arm else []
        if in_arm and not shadow:
            self.after = self.trial or answered
            self.compared = self.trial
            self.features = candidate.outputs
        else:
            own = [item for item in answered if item.release == stable_digest]
            self.after = own
            self.compared = self.trial if in_arm else own
            self.features = candidate.outputs if in_arm or stable is None else stable.outputs


def _usage(windows: Sequence[Window]) -> Usage:
    merged = latency.EMPTY
    for window in windows:
        merged = latency.merge(merged, window.latency)
    return Usage(
        predictions=sum(window.predictions for window in windows),
        errors=sum(window.errors for window in windows),
        latency=merged,
    )


def _outputs(windows: Sequence[Window], features: FeatureSet) -> FeatureSketches | None:
    parts = [window.outputs for window in windows if window.outputs is not None]
    return feature_sketches.merge_all(parts, features) if parts else None


def _pairs(windows: Sequence[Window]) -> Pairs | None:
    found = [window.pairs for window in windows if window.pairs is not None]
    if not found:
        return None
    return Pairs(
        sum(item.rows for item in found),
        sum(item.agreements for item in found),
        sum(item.slower for item in found),
    )

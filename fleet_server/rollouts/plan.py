"""The plan of a rollout: its stages, its guardrails, and how the error probability is spent.

Decides what a valid plan is and which part of alpha each guardrail has at each look of each stage.
What a guardrail computes is in :mod:`.gates`, when it is looked at in :mod:`.decide`.
"""

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract import codec
from fleet_server.errors import Invalid

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

STAGES = 16
LOOKS = 10
LONGEST_MS = 90 * DAY_MS

Duration = Annotated[int, Meta(ge=0, le=LONGEST_MS)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]

_STAGE_NAME = re.compile(r"^[a-z0-9][a-z0-9.-]{0,38}\Z")


class StageKind(StrEnum):
    """How far a stage takes its devices: ``shadow`` runs the candidate beside the stable release,
    ``canary`` lets a share of the devices answer with it, ``full`` is the last stage.
    """

    SHADOW = "shadow"
    CANARY = "canary"
    FULL = "full"


class Guardrail(StrEnum):
    """What is watched; each has a gate of its own."""

    FAILURE_OR_SILENCE = "failure_or_silence"
    ERROR_RATE = "error_rate"
    LATENCY = "latency"
    OUTPUT_DRIFT = "output_drift"
    AGREEMENT = "agreement"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a plan.

    ``percent`` of the eligible devices get the candidate; what is left is the concurrent control.
    ``soak_ms`` is how long they are observed once ``minimum_devices`` of them run it.
    ``minimum_predictions`` counts those of the candidate in this stage. After ``deadline_ms``
    without a verdict the rollout holds.
    """

    name: str
    kind: StageKind
    percent: Annotated[float, Meta(gt=0, le=100)]
    soak_ms: Duration
    minimum_devices: Annotated[int, Meta(ge=1, le=10_000_000)] = 1
    minimum_predictions: Count = 0
    deadline_ms: Annotated[int, Meta(ge=1, le=LONGEST_MS)] = DAY_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Guardrails:
    """What each gate tolerates, besides its part of alpha.

    A device is silent after ``silence_intervals`` report intervals and ``silence_grace_ms``
    without an accepted report. ``failed_share`` is tolerated where no control exists.
    ``success_share`` of the devices that are not silent must have succeeded before a stage
    passes. ``error_rate_limit`` is absolute: above it nothing is promoted, whoever is to blame.
    ``error_rate_increase`` is the least difference (share of predictions) that counts.
    ``latency_ratio`` is how much slower a device's p95 must get to count as worse, and
    ``drift_margin`` how much further (Hellinger distance, 0 to 1) the candidate's outputs may lie
    from its baseline than the stable release's from its own. ``least_agreement`` is the share of
    shadow pairs with the same winning class; 0 switches the gate off. ``minimum_rows`` is what a
    device must have seen to take part in a comparison.
    """

    silence_intervals: Annotated[int, Meta(ge=1, le=1000)] = 4
    silence_grace_ms: Duration = 30 * SECOND_MS
    failed_share: Share = 0.05
    success_share: Share = 0.8
    error_rate_limit: Share = 0.02
    error_rate_increase: Share = 0.002
    latency_ratio: Annotated[float, Meta(ge=1, le=100)] = 1.25
    drift_margin: Share = 0.1
    least_agreement: Share = 0.5
    minimum_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPlan:
    """How a release reaches a cohort.

    ``report_every_ms`` is asked of every device, both arms alike. ``spread_ms`` spreads the
    downloads. ``device_soak_ms`` is how long a device watches the release before it calls it
    succeeded. ``alpha`` is the probability, over the whole rollout, of rolling back a release that
    is no worse; ``looks`` is how often each stage is judged while it soaks.
    ``lookback_ms`` bounds how far before the first exposure a device's own past is read.
    """

    name: str
    stages: tuple[Stage, ...]
    report_every_ms: Annotated[int, Meta(ge=100, le=DAY_MS)] = MINUTE_MS
    spread_ms: Duration = 0
    device_soak_ms: Duration = 0
    lookback_ms: Duration = DAY_MS
    alpha: Annotated[float, Meta(gt=0, le=0.5)] = 0.05
    looks: Annotated[int, Meta(ge=1, le=LOOKS)] = 4
    guardrails: Guardrails = field(default_factory=Guardrails)


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A guardrail's part of alpha in one look of one stage; look 0 means at any time."""

    guardrail: Guardrail
    stage: str
    look: int
    alpha: float


def has_control(stage: Stage) -> bool:
    """Say whether a stage leaves devices that the candidate can be compared with."""
    return stage.percent < 100


def guardrails_of(stage: Stage, *, first: bool) -> tuple[Guardrail, ...]:
    """Return what is judged in a stage; ``first`` for the first release of a cohort.

    Without a concurrent control a change of latency or outputs may be the world's, so only
    failures and errors, which have absolute limits, are judged.
    """
    if first:
        return (Guardrail.FAILURE_OR_SILENCE, Guardrail.ERROR_RATE)
    found = [Guardrail.FAILURE_OR_SILENCE, Guardrail.ERROR_RATE]
    if has_control(stage):
        found += [Guardrail.LATENCY, Guardrail.OUTPUT_DRIFT]
    if stage.kind is StageKind.SHADOW:
        found.append(Guardrail.AGREEMENT)
    return tuple(found)


def ledger(plan: RolloutPlan, *, first: bool = False) -> tuple[LedgerRow, ...]:
    """Return how alpha is spent: split evenly over guardrails, then stages, then looks.

    The rows add up to ``plan.alpha``. ``failure_or_silence`` is valid at any time and needs no
    looks; the others are judged at most ``plan.looks`` times a stage.
    """
    judged = {stage.name: guardrails_of(stage, first=first) for stage in plan.stages}
    used = [item for item in Guardrail if any(item in found for found in judged.values())]
    rows = []
    for guardrail in used:
        stages = [name for name, found in judged.items() if guardrail in found]
        alpha = plan.alpha / len(used) / len(stages)
        for name in stages:
            if guardrail is Guardrail.FAILURE_OR_SILENCE:
                rows.append(LedgerRow(guardrail, name, 0, alpha))
            else:
                rows += [
                    LedgerRow(guardrail, name, look, alpha / plan.looks)
                    for look in range(1, plan.looks + 1)
                ]
    return tuple(rows)


def alpha_of(plan: RolloutPlan, guardrail: Guardrail, stage: str, *, first: bool) -> float:
    """Return a guardrail's part of alpha at one look of a stage."""
    return next(
        row.alpha
        for row in ledger(plan, first=first)
        if row.guardrail is guardrail and row.stage == stage
    )


def check(plan: RolloutPlan) -> RolloutPlan:
    """Return the plan if it can be carried out.

    Raises:
        Invalid: ``bad_plan``, saying which stage and what to write instead.
    """
    if not plan.stages:
        raise _bad("a plan needs at least one stage", "add a stage of kind full")
    if len(plan.stages) > STAGES:
        raise _bad(f"a plan has at most {STAGES} stages", "merge some of them")
    if not _STAGE_NAME.match(plan.name):
        raise _bad(f"its name {plan.name[:40]!r} is not allowed", "use a-z, 0-9, . and -")
    names = [stage.name for stage in plan.stages]
    for name in names:
        if not _STAGE_NAME.match(name):
            raise _bad(f"stage name {name[:40]!r} is not allowed", "use a-z, 0-9, . and -")
    if len(set(names)) != len(names):
        raise _bad("two stages have the same name", "give each stage its own name")
    order = [StageKind.SHADOW, StageKind.CANARY, StageKind.FULL]
    kinds = [order.index(stage.kind) for stage in plan.stages]
    if kinds != sorted(kinds):
        raise _bad("stages are out of order", "first shadow, then canary, then full")
    if kinds.count(2) != 1:
        raise _bad("a plan ends with exactly one full stage", "add one with percent 100")
    exposed = [stage for stage in plan.stages if stage.kind is not StageKind.SHADOW]
    for before, after in pairwise(exposed):
        if after.percent < before.percent:
            raise _bad(
                f"stage {after.name} ({after.percent}%) is smaller than {before.name}",
                "an arm only grows; order the stages by percent",
            )
    for stage in plan.stages:
        if stage.soak_ms >= stage.deadline_ms:
            raise _bad(
                f"stage {stage.name} soaks longer than its deadline",
                "set deadline_ms well above soak_ms",
            )
    return plan


def read(value: object) -> RolloutPlan:
    """Return the plan in a JSON-like value.

    Raises:
        Invalid: ``bad_plan`` if it is none, or cannot be carried out.
    """
    try:
        plan = msgspec.convert(value, codec.prepared(RolloutPlan))
    except msgspec.ValidationError as error:
        raise _bad(
            str(error), "see `edgefleet rollout plan careful --json` for an example"
        ) from error
    return check(plan)


def template(name: str) -> RolloutPlan:
    """Return a plan by name: ``dev``, ``careful`` or ``direct``.

    Raises:
        Invalid: ``bad_plan`` for any other name.
    """
    found = TEMPLATES.get(name)
    if found is None:
        raise _bad(f"there is no plan {name[:40]!r}", f"choose one of {', '.join(TEMPLATES)}")
    return found


def first_release(plan: RolloutPlan) -> RolloutPlan:
    """Return the plan for a cohort that runs nothing yet: its full stage alone, for everybody.

    With nothing to compare with and nothing to go back to, a canary would prove nothing.
    """
    last = replace(plan.stages[-1], percent=100.0)
    return replace(plan, stages=(last,))


def _bad(detail: str, advice: str) -> Invalid:
    return Invalid("bad_plan", detail, advice)


TEMPLATES: dict[str, RolloutPlan] = {
    # For trying out: the same statistics as careful, in about a minute.
    "dev": RolloutPlan(
        name="dev",
        stages=(
            Stage(
                name="shadow",
                kind=StageKind.SHADOW,
                percent=10.0,
                soak_ms=8 * SECOND_MS,
                minimum_predictions=200,
                deadline_ms=5 * MINUTE_MS,
            ),
            Stage(
                name="canary-5",
                kind=StageKind.CANARY,
                percent=5.0,
                soak_ms=8 * SECOND_MS,
                minimum_predictions=100,
                deadline_ms=5 * MINUTE_MS,
            ),
            Stage(
                name="canary-25",
                kind=StageKind.CANARY,
                percent=25.0,
                soak_ms=8 * SECOND_MS,
                minimum_predictions=500,
                deadline_ms=5 * MINUTE_MS,
            ),
            Stage(
                name="full",
                kind=StageKind.FULL,
                percent=100.0,
                soak_ms=5 * SECOND_MS,
                minimum_predictions=1000,
                deadline_ms=10 * MINUTE_MS,
            ),
        ),
        report_every_ms=SECOND_MS,
        spread_ms=0,
        device_soak_ms=3 * SECOND_MS,
        lookback_ms=HOUR_MS,
        looks=3,
        guardrails=Guardrails(silence_intervals=5, silence_grace_ms=25 * SECOND_MS),
    ),
    "careful": RolloutPlan(
        name="careful",
        stages=(
            Stage(
                name="shadow",
                kind=StageKind.SHADOW,
                percent=10.0,
                soak_ms=6 * HOUR_MS,
                minimum_predictions=1_000,
                deadline_ms=2 * DAY_MS,
            ),
            Stage(
                name="canary-1",
                kind=StageKind.CANARY,
                percent=1.0,
                soak_ms=6 * HOUR_MS,
                minimum_predictions=500,
                deadline_ms=2 * DAY_MS,
            ),
            Stage(
                name="canary-5",
                kind=StageKind.CANARY,
                percent=5.0,
                soak_ms=12 * HOUR_MS,
                minimum_predictions=2_000,
                deadline_ms=3 * DAY_MS,
            ),
            Stage(
                name="canary-25",
                kind=StageKind.CANARY,
                percent=25.0,
                soak_ms=DAY_MS,
                minimum_devices=2,
                minimum_predictions=10_000,
                deadline_ms=4 * DAY_MS,
            ),
            # The holdback of 5% stays the control until the last soak is over.
            Stage(
                name="full",
                kind=StageKind.FULL,
                percent=95.0,
                soak_ms=DAY_MS,
                minimum_devices=3,
                minimum_predictions=20_000,
                deadline_ms=7 * DAY_MS,
            ),
        ),
        report_every_ms=5 * MINUTE_MS,
        spread_ms=15 * MINUTE_MS,
        device_soak_ms=30 * MINUTE_MS,
        lookback_ms=7 * DAY_MS,
        looks=5,
        guardrails=Guardrails(silence_grace_ms=10 * MINUTE_MS),
    ),
    # The very first release of a cohort: there is nothing to compare with.
    "direct": RolloutPlan(
        name="direct",
        stages=(
            Stage(
                name="full",
                kind=StageKind.FULL,
                percent=100.0,
                soak_ms=3 * SECOND_MS,
                deadline_ms=10 * MINUTE_MS,
            ),
        ),
        report_every_ms=SECOND_MS,
        device_soak_ms=2 * SECOND_MS,
        looks=1,
        guardrails=Guardrails(silence_intervals=5, silence_grace_ms=30 * SECOND_MS),
    ),
}

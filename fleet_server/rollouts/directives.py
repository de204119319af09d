"""The directive that carries a decision out: the whole desired state, built from what is stored.

Decides which arm gets which release in which state of a rollout. A directive is a function of the
rollout and its stage, never of what was published before, so that writing it twice does no harm.
Signing it, and getting it to devices, is done elsewhere.
"""

from dataclasses import dataclass

from fleet_contract import bucket
from fleet_contract.trust.directive import Activation, Arm, Directive, Starts, Target
from fleet_server.rollouts.plan import DAY_MS, RolloutPlan, StageKind
from fleet_server.rollouts.snapshot import RolloutFacts, StageFacts
from fleet_server.rollouts.states import RolloutState

LIFETIME_MS = 7 * DAY_MS
"""How long a directive may start something new; it is renewed at half of it."""

ARM = "candidate"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What only the moment of writing knows: the keyset's generation, the epoch, the time."""

    generation: int
    epoch: int
    now_ms: int


def build(
    rollout: RolloutFacts, plan: RolloutPlan, stage: StageFacts | None, *, retry: int, stamp: Stamp
) -> Directive:
    """Return the directive for a rollout as it stands.

    Args:
        rollout: with the state that the decision leads to.
        plan: its plan.
        stage: the present stage; None before the first.
        retry: grows with every rollout of a model in a cohort, so that devices try again.
        stamp: generation, epoch and time of this directive.
    """
    stable = rollout.stable.ref if rollout.stable is not None else None
    candidate = rollout.candidate.ref
    state = rollout.state
    default: Target = stable
    standby = stable
    arms: list[Arm] = []
    activation = Activation.ACTIVE
    starts = Starts.OPEN
    spread_ms = plan.spread_ms
    if state is RolloutState.COMPLETED:
        default = candidate
    elif state in (RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK):
        # The standby is warm and needs no download: nobody waits.
        spread_ms = 0
    elif stage is not None:
        planned = plan.stages[stage.index]
        arms = [
            Arm(
                name=ARM,
                first=bucket.write_bucket(0),
                last=bucket.write_bucket(stage.arm_last),
                release=candidate,
                report_every_ms=plan.report_every_ms,
            )
        ]
        shadow = planned.kind is StageKind.SHADOW
        activation = Activation.SHADOW if shadow else Activation.ACTIVE
        if state is RolloutState.PAUSED:
            starts = Starts.PAUSED
        elif state is RolloutState.ABORTED:
            starts = Starts.CANCELED
    return Directive(
        fleet=rollout.fleet,
        cohort=rollout.cohort,
        model=rollout.model,
        generation=stamp.generation,
        epoch=stamp.epoch,
        issued_ms=stamp.now_ms,
        expires_ms=stamp.now_ms + LIFETIME_MS,
        rollout=rollout.id,
        salt=rollout.salt,
        default=default,
        arms=arms,
        activation=activation,
        starts=starts,
        spread_ms=spread_ms,
        soak_ms=plan.device_soak_ms,
        report_every_ms=plan.report_every_ms,
        retry=retry,
        standby=standby,
    )

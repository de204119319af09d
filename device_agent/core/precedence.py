"""What a model should be on this device: pin or block > directive.

The other two of the precedence, the stop above them and a local revert or quarantine between them,
do not change what is wanted but whether the device goes there: they are in
:mod:`device_agent.core.pursuit`.
"""

from dataclasses import dataclass

from device_agent.core.state import DISABLED, ModelState
from device_agent.core.transitions import STARTED
from device_agent.core.turn import Turn
from fleet_contract.trust.directive import Activation, Arm, Directive, ReleaseRef, Starts


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a model should be.

    ``release`` is None for :data:`DISABLED`. ``forward`` says that a rollout brings it, rather
    than being what the fleet falls back to; ``starts`` and ``spread_ms`` hold for those only who
    have not started.
    """

    release: ReleaseRef | None
    digest: str
    activation: Activation = Activation.ACTIVE
    forward: bool = False
    pinned: bool = False
    starts: Starts = Starts.OPEN
    spread_ms: int = 0


def revoked(turn: Turn, model: ModelState, digest: str) -> bool:
    """Say whether the keyset forbids to go to a release that this device holds."""
    floor = turn.record.keyset.release_floors.get(model.model, 0)
    return any(
        item.ref.digest == digest and item.release_counter < floor for item in model.admitted
    )


def wanted(turn: Turn, model: ModelState) -> Wanted | None:
    """Return what this device should run, None to leave it as it is."""
    directive, assignment = model.directive, turn.record.assignment
    pin = assignment.pins.get(model.model) if assignment is not None else None
    if pin is not None:
        return Wanted(pin, pin.digest, pinned=True)
    if directive is None:
        return None
    arm = directive.arm_for(turn.record.device)
    if arm is not None and _gives_way(model, directive, arm):
        arm = None
    target = arm.release if arm is not None else directive.default
    if target is None:
        return None
    if isinstance(target, str):
        return Wanted(None, DISABLED)
    blocked = blocks(turn, model.model)
    if target.digest in blocked:
        return _unblocked(model, directive, blocked)
    return _brought(directive, target, in_arm=arm is not None)


def moves_back(model: ModelState, goal: Wanted) -> bool:
    """Say whether going there is a move back, which nothing but a quarantine holds up.

    It is one if it takes the model away, or leads to a release that this device has run and that
    no rollout is bringing, or that nothing answers in place of.
    """
    if goal.release is None:
        return True
    if goal.activation is not Activation.ACTIVE:
        return False
    return model.ran(goal.digest) and (model.active is None or not goal.forward)


def blocks(turn: Turn, model: str) -> list[str]:
    """Return the digests of the releases that must not run here."""
    assignment = turn.record.assignment
    return assignment.blocks.get(model, []) if assignment is not None else []


def _gives_way(model: ModelState, directive: Directive, arm: Arm) -> bool:
    """Say whether the default release stands in for the arm's on this device."""
    stable, candidate = directive.default, arm.release
    if not isinstance(stable, ReleaseRef) or not isinstance(candidate, ReleaseRef):
        return False
    runs_none = model.active is None
    if directive.activation is not Activation.ACTIVE:
        # It must not answer yet: not where nothing else does, nor where it does from another time.
        return runs_none or model.active_digest == candidate.digest
    started = model.phase in STARTED and model.target == candidate.digest
    # Whoever may not start the candidate and has nothing else would be left without a model.
    return runs_none and directive.starts is not Starts.OPEN and not started


def _brought(directive: Directive, target: ReleaseRef, *, in_arm: bool) -> Wanted:
    kept_warm = directive.standby.digest if directive.standby is not None else ""
    activation = directive.activation if in_arm else Activation.ACTIVE
    if in_arm:
        forward = target.digest != kept_warm or activation is not Activation.ACTIVE
    else:
        # A finished rollout makes its candidate the default and names the old release as standby.
        forward = kept_warm not in ("", target.digest)
    starts = directive.starts if in_arm and forward else Starts.OPEN
    return Wanted(
        target,
        target.digest,
        activation,
        forward=forward,
        starts=starts,
        spread_ms=directive.spread_ms,
    )


def _unblocked(model: ModelState, directive: Directive, blocked: list[str]) -> Wanted | None:
    # A blocked release gives way to the default one, or to the standby, or it stays as it is.
    for release in (directive.default, model.active, model.standby):
        if not isinstance(release, ReleaseRef) or release.digest in blocked:
            continue
        if model.reached(release.digest) or not model.quarantined(release.digest):
            return Wanted(release, release.digest)
    return None

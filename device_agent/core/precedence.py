"""What a model should be on this device: pin or block > directive.

The other two of the precedence, the stop above them and a local revert or quarantine between them,
do not change what is wanted but whether the device goes there: they are in
:mod:`device_agent.core.deployment`.
"""

from dataclasses import dataclass

from device_agent.core.state import DISABLED, ModelState
from device_agent.core.turn import Turn
from fleet_contract.trust.directive import Activation, Directive, ReleaseRef


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a model should be: a release, ``DISABLED``, or None where nothing is known."""

    release: ReleaseRef | None
    digest: str
    activation: Activation


def wanted(turn: Turn, model: ModelState) -> Wanted | None:
    """Return what this device should run, None to leave it as it is."""
    directive, assignment = model.directive, turn.record.assignment
    pin = assignment.pins.get(model.model) if assignment is not None else None
    if pin is not None:
        return Wanted(pin, pin.digest, Activation.ACTIVE)
    if directive is None:
        return None
    arm = directive.arm_for(turn.record.device)
    target = arm.release if arm is not None else directive.default
    activation = directive.activation if arm is not None else Activation.ACTIVE
    if target is None:
        return None
    if isinstance(target, str):
        return Wanted(None, DISABLED, Activation.ACTIVE)
    blocked = assignment.blocks.get(model.model, []) if assignment is not None else []
    if target.digest in blocked:
        return _unblocked(model, directive, blocked)
    return Wanted(target, target.digest, activation)


def _unblocked(model: ModelState, directive: Directive, blocked: list[str]) -> Wanted | None:
    # A blocked release gives way to the default one, or to the standby, or it stays as it is.
    for release in (directive.default, model.active, model.standby):
        if isinstance(release, ReleaseRef) and release.digest not in blocked:
            return Wanted(release, release.digest, Activation.ACTIVE)
    return None

"""The one table of a device deployment's transitions; the diagram in the docs is drawn from it.

Decides which phase follows which trigger, and nothing about when a trigger is pulled.
"""

from enum import StrEnum

from device_agent.errors import AgentError
from fleet_contract.messages.progress import Phase


class Trigger(StrEnum):
    """What moves a deployment on."""

    TARGETED = "targeted"
    HELD = "held"
    RELEASED = "released"
    STARTED = "started"
    FETCHED = "fetched"
    PROBED = "probed"
    SHADOWED = "shadowed"
    UNSHADOWED = "unshadowed"
    ACTIVATION_BEGUN = "activation_begun"
    RETURN_BEGUN = "return_begun"
    ACTIVATED = "activated"
    RETURNED = "returned"
    SOAKED = "soaked"
    RETRIED = "retried"
    REJECTED = "rejected"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELED = "canceled"
    WITHDRAWN = "withdrawn"
    SETTLED = "settled"
    KEPT = "kept"
    FORGOTTEN = "forgotten"


SETTLED = frozenset(
    {
        Phase.IDLE,
        Phase.SUCCEEDED,
        Phase.FAILED,
        Phase.TIMED_OUT,
        Phase.REJECTED,
        Phase.CANCELED,
        Phase.ROLLED_BACK,
    }
)
"""Phases in which nothing is under way."""

GIVEN_UP = frozenset({Phase.FAILED, Phase.TIMED_OUT, Phase.REJECTED})
"""Ends after which a release is not tried again until the directive's ``retry`` grows."""

UNDERWAY = frozenset(Phase) - SETTLED
WAITING = frozenset({Phase.QUEUED, Phase.NOTIFIED})
STARTED = UNDERWAY - WAITING


class ImpossibleTransition(AgentError):
    """The core asked for a transition that the table does not have: a defect of the core."""


def _table() -> dict[tuple[Phase, Trigger], Phase]:
    rows: list[tuple[Trigger, frozenset[Phase] | set[Phase], Phase]] = [
        # A directive, an assignment or a lifted stop wants another release than before.
        (Trigger.TARGETED, frozenset(Phase), Phase.NOTIFIED),
        (Trigger.RETURN_BEGUN, frozenset(Phase), Phase.ACTIVATING),
        (Trigger.WITHDRAWN, UNDERWAY, Phase.CANCELED),
        (Trigger.SETTLED, SETTLED, Phase.IDLE),
        # What was under way or ran is not any more: begin anew.
        (Trigger.FORGOTTEN, frozenset(Phase), Phase.IDLE),
        # What a rollout wants is what runs already, since something else was given up half-way.
        (Trigger.KEPT, UNDERWAY | GIVEN_UP | {Phase.CANCELED, Phase.ROLLED_BACK}, Phase.SOAKING),
        # Before a start.
        (Trigger.HELD, {Phase.NOTIFIED}, Phase.QUEUED),
        (Trigger.RELEASED, {Phase.QUEUED}, Phase.NOTIFIED),
        (Trigger.CANCELED, WAITING, Phase.CANCELED),
        # Forward.
        (Trigger.STARTED, {Phase.NOTIFIED}, Phase.DOWNLOADING),
        (Trigger.FETCHED, {Phase.DOWNLOADING}, Phase.VERIFYING),
        (Trigger.PROBED, {Phase.VERIFYING}, Phase.STAGED),
        (Trigger.SHADOWED, {Phase.STAGED}, Phase.SHADOWING),
        (Trigger.UNSHADOWED, {Phase.SHADOWING}, Phase.STAGED),
        (Trigger.ACTIVATION_BEGUN, {Phase.STAGED, Phase.SHADOWING}, Phase.ACTIVATING),
        (Trigger.ACTIVATED, {Phase.ACTIVATING}, Phase.SOAKING),
        (Trigger.SOAKED, {Phase.SOAKING}, Phase.SUCCEEDED),
        # Back.
        (Trigger.RETURNED, {Phase.ACTIVATING}, Phase.ROLLED_BACK),
        # What goes wrong.
        (Trigger.RETRIED, STARTED, Phase.NOTIFIED),
        (Trigger.REJECTED, {Phase.DOWNLOADING, Phase.VERIFYING}, Phase.REJECTED),
        (Trigger.TIMED_OUT, {Phase.DOWNLOADING}, Phase.TIMED_OUT),
        (Trigger.FAILED, frozenset(Phase), Phase.FAILED),
    ]
    return {
        (phase, trigger): after
        for trigger, before, after in rows
        for phase in Phase
        if phase in before
    }


TABLE = _table()


def advance(phase: Phase, trigger: Trigger) -> Phase:
    """Return the phase after a trigger.

    Raises:
        ImpossibleTransition: if the table has no such transition.
    """
    try:
        return TABLE[phase, trigger]
    except KeyError:
        raise ImpossibleTransition(f"{trigger.value} in phase {phase.value}") from None


def diagram() -> str:
    """Return the table as a Mermaid state diagram, without the triggers that any phase takes."""
    everywhere = {
        trigger for trigger in Trigger if all((phase, trigger) in TABLE for phase in Phase)
    }
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.IDLE.value}"]
    lines += [
        f"    {before.value} --> {after.value}: {trigger.value}"
        for (before, trigger), after in TABLE.items()
        if trigger not in everywhere
    ]
    lines += [
        f"    any --> {TABLE[Phase.IDLE, trigger].value}: {trigger.value}"
        for trigger in Trigger
        if trigger in everywhere
    ]
    return "\n".join(lines) + "\n"

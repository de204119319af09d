"""The states of a rollout and of its stages, and the one table of a rollout's transitions.

Decides which action is possible in which state; the diagram in the docs is drawn from the table.
When an action is taken is decided by operators and by :mod:`.decide`.
"""

from enum import StrEnum

from fleet_server.errors import Conflict


class RolloutState(StrEnum):
    """Where a rollout stands."""

    DRAFT = "draft"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    ROLLING_BACK = "rolling_back"
    COMPLETED = "completed"
    ABORTED = "aborted"
    ROLLED_BACK = "rolled_back"


class StageState(StrEnum):
    """Where one stage of a rollout stands."""

    PENDING = "pending"
    DEPLOYING = "deploying"
    SOAKING = "soaking"
    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


class Action(StrEnum):
    """What moves a rollout on. ``BEGIN``, ``FINISH``, ``HOLD`` and ``CONFIRM`` are the
    controller's; it may also roll back. The others are an operator's.
    """

    START = "start"
    BEGIN = "begin"
    PAUSE = "pause"
    HOLD = "hold"
    RESUME = "resume"
    FINISH = "finish"
    ABORT = "abort"
    ROLL_BACK = "roll_back"
    CONFIRM = "confirm"


OPERATORS = frozenset({Action.START, Action.PAUSE, Action.RESUME, Action.ABORT, Action.ROLL_BACK})

TABLE: dict[tuple[RolloutState, Action], RolloutState] = {
    (RolloutState.DRAFT, Action.START): RolloutState.SCHEDULED,
    (RolloutState.DRAFT, Action.ABORT): RolloutState.ABORTED,
    (RolloutState.SCHEDULED, Action.BEGIN): RolloutState.RUNNING,
    (RolloutState.SCHEDULED, Action.ABORT): RolloutState.ABORTED,
    (RolloutState.RUNNING, Action.PAUSE): RolloutState.PAUSED,
    (RolloutState.RUNNING, Action.HOLD): RolloutState.PAUSED,
    (RolloutState.RUNNING, Action.FINISH): RolloutState.COMPLETED,
    (RolloutState.RUNNING, Action.ABORT): RolloutState.ABORTED,
    (RolloutState.RUNNING, Action.ROLL_BACK): RolloutState.ROLLING_BACK,
    (RolloutState.PAUSED, Action.RESUME): RolloutState.RUNNING,
    (RolloutState.PAUSED, Action.ABORT): RolloutState.ABORTED,
    (RolloutState.PAUSED, Action.ROLL_BACK): RolloutState.ROLLING_BACK,
    # An abort leaves changed devices as they are, and a completed rollout may still prove wrong.
    (RolloutState.ABORTED, Action.ROLL_BACK): RolloutState.ROLLING_BACK,
    (RolloutState.COMPLETED, Action.ROLL_BACK): RolloutState.ROLLING_BACK,
    (RolloutState.ROLLING_BACK, Action.CONFIRM): RolloutState.ROLLED_BACK,
}

ACTIVE = frozenset(
    {
        RolloutState.SCHEDULED,
        RolloutState.RUNNING,
        RolloutState.PAUSED,
        RolloutState.ROLLING_BACK,
    }
)
"""States in which the controller looks after a rollout; one rollout of a model in a cohort may be
in them at a time."""

ENDED = frozenset({RolloutState.COMPLETED, RolloutState.ABORTED, RolloutState.ROLLED_BACK})


def advance(state: RolloutState, action: Action) -> RolloutState:
    """Return the state after an action.

    Raises:
        Conflict: ``wrong_state`` if the action is not possible in this state.
    """
    after = TABLE.get((state, action))
    if after is None:
        possible = sorted(
            found.value.replace("_", "")
            for before, found in TABLE
            if before is state and found in OPERATORS
        )
        raise Conflict(
            "wrong_state",
            f"A rollout that is {state.value.replace('_', ' ')} cannot "
            f"{action.value.replace('_', ' ')}.",
            f"Possible now: {', '.join(possible)}."
            if possible
            else "Nothing is left to do with it; create a new rollout.",
        )
    return after


def diagram() -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {RolloutState.DRAFT.value}"]
    lines += [
        f"    {before.value} --> {after.value}: {action.value}"
        for (before, action), after in TABLE.items()
    ]
    return "\n".join(lines) + "\n"

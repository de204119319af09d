"""Pursuit: from what is wanted to the next effect, one model at a time.

Level-triggered: :func:`pursue` compares what is wanted with what is, and may be called at any time
and any number of times. What is wanted is decided in :mod:`device_agent.core.precedence`; a stop,
a local revert or a quarantine holds this module back from going there. A move back to a release
that ran on the device, or to nothing, is always allowed and waits for nothing; only forward moves
wait. Every phase in which an answer is awaited has a time after which it is missed.
"""

from msgspec.structs import replace

from device_agent.core import deployment
from device_agent.core.deployment import ANSWER_MS, LONGEST_RETRY_MS, PROBE_MS, interrupt
from device_agent.core.effects import (
    Activate,
    CancelFetch,
    Disable,
    Discard,
    DropStandby,
    Fetch,
    Probe,
    StartShadow,
    StopShadow,
)
from device_agent.core.precedence import Wanted, moves_back, revoked, wanted
from device_agent.core.state import ModelState, Move
from device_agent.core.transitions import GIVEN_UP, SETTLED, WAITING, Trigger
from device_agent.core.turn import Turn
from fleet_contract.bucket import LAST_BUCKET, bucket_of
from fleet_contract.errors import Reason
from fleet_contract.messages.progress import Phase
from fleet_contract.trust.directive import Activation, Directive, Starts

RELEASES_KEPT = 3
"""Releases of a model whose files stay on the device: the running one and two to go back to."""

FETCH_MS = 24 * 3_600_000
"""A download that has not been answered by then is lost; the slowest links need hours."""

_HELD = frozenset({Reason.STOPPED, Reason.EXPIRED})
_UNPROVEN = GIVEN_UP | {Phase.CANCELED, Phase.ROLLED_BACK}
_TIDY = SETTLED | {Phase.STAGED, Phase.SHADOWING, Phase.SOAKING}


def pursue(turn: Turn, name: str) -> None:
    """Bring one model nearer to what is wanted."""
    model = _on_time(turn, turn.model(name))
    goal = wanted(turn, model)
    if goal is None:
        if model.phase not in SETTLED and model.phase is not Phase.SOAKING:
            interrupt(turn, model)
            unsure = model.unsure or model.phase is Phase.ACTIVATING
            turn.move(replace(model, unsure=unsure), Trigger.WITHDRAWN, reason=Reason.SUPERSEDED)
    else:
        if _begins(turn, model, goal):
            model = _begin(turn, model, goal)
        if model.phase in WAITING:
            _start(turn, model, goal)
        elif model.phase in (Phase.STAGED, Phase.SHADOWING):
            _go_on(turn, model, goal)
    model = turn.model(name)
    if model.phase in GIVEN_UP and model.due_ms is not None and turn.now_ms >= model.due_ms:
        turn.put(replace(model, due_ms=None))  # Nobody waits for it any more.
    _tidy(turn, name)


def forward_allowed(turn: Turn, model: ModelState, goal: Wanted) -> bool:
    """Say whether forward moves may be made: the stop, the assignment and the directive came in
    over the present connection, and the stop is lifted.
    """
    live, stop = turn.live, turn.record.stop
    ordered = goal.pinned or model.model in live.directives_seen
    complete = live.connected and live.assignment_seen and live.stop_seen and ordered
    return complete and stop is not None and not stop.stopped


def _on_time(turn: Turn, model: ModelState) -> ModelState:
    """Do what time alone brings about."""
    if model.due_ms is None:
        return model
    latest_ms = turn.now_ms + _longest_ms(turn, model)
    if model.due_ms > latest_ms:
        # The clock was set back, or a newer directive is in more of a hurry.
        model = turn.put(replace(model, due_ms=latest_ms))
    if model.due_ms is None or turn.now_ms < model.due_ms:
        return model
    name, target = model.model, model.target
    match model.phase:
        case Phase.SOAKING:
            turn.move(model, Trigger.SOAKED)
        case Phase.DOWNLOADING:
            turn.do(CancelFetch(name, target))
            deployment.failed(turn, name, target, Reason.DOWNLOAD_FAILED, "it took too long")
        case Phase.VERIFYING:
            deployment.failed(turn, name, target, Reason.PROBE_TIMED_OUT, "no answer")
        case Phase.ACTIVATING if model.move is Move.BACK:
            # Asked for anew for as long as it is wanted.
            turn.put(replace(model, target="", due_ms=None))
        case Phase.ACTIVATING:
            deployment.failed(turn, name, target, Reason.ACTIVATION_FAILED, "no answer")
        case _ if deployment.reverting(model) and model.standby is not None:
            turn.put(replace(model, due_ms=turn.now_ms + LONGEST_RETRY_MS))
            turn.do(Probe(name, model.standby))
    return turn.model(name)


def _longest_ms(turn: Turn, model: ModelState) -> int:
    """Return how long the present phase may last before something happens by itself."""
    directive = model.directive
    match model.phase:
        case Phase.SOAKING:
            return directive.soak_ms if directive is not None else 0
        case Phase.QUEUED | Phase.NOTIFIED if model.reason is None or model.reason in _HELD:
            return _spread_ms(turn, directive)
        case Phase.DOWNLOADING:
            return FETCH_MS
        case Phase.VERIFYING:
            return PROBE_MS
        case Phase.ACTIVATING:
            return ANSWER_MS
        case _:
            return LONGEST_RETRY_MS


def _begins(turn: Turn, model: ModelState, goal: Wanted) -> bool:
    """Say whether a deployment of this goal has to begin."""
    if goal.digest != model.target:
        return True
    reached = model.reached(goal.digest)
    if model.phase in GIVEN_UP:
        if model.quarantined(goal.digest):
            return False
        if reached:
            return goal.forward
        return model.due_ms is None or turn.now_ms >= model.due_ms
    if model.phase in _UNPROVEN:
        # What a rollout wants runs already, but came another way: it soaks like any other.
        return goal.forward if reached else goal.starts is not Starts.CANCELED
    return model.phase in SETTLED and not reached


def _begin(turn: Turn, model: ModelState, goal: Wanted) -> ModelState:
    """Begin a deployment of this goal, whatever was under way."""
    interrupt(turn, model)
    underway = model.phase not in SETTLED
    activating = model.phase is Phase.ACTIVATING or model.unsure
    reached = model.reached(goal.digest)
    back = moves_back(model, goal)
    model = replace(
        model,
        target=goal.digest,
        attempts=0,
        failures={},
        move=_direction(model, goal),
        unsure=activating,
    )
    if reached and not activating:
        if model.phase is Phase.SOAKING:
            return turn.put(model)
        if goal.forward and (underway or model.phase in _UNPROVEN):
            return deployment.soak(turn, model, Trigger.KEPT)
        trigger = Trigger.WITHDRAWN if underway else Trigger.SETTLED
        return turn.move(model, trigger, reason=Reason.SUPERSEDED if underway else None)
    answer_ms = turn.now_ms + ANSWER_MS
    if goal.release is None:
        model = turn.move(model, Trigger.RETURN_BEGUN, due_ms=answer_ms)
        turn.do(Disable(model.model))
        return model
    if model.quarantined(goal.digest) and not (goal.pinned or reached):
        return turn.move(
            model, Trigger.FAILED, reason=Reason.QUARANTINED, detail="it was given up here before"
        )
    if not reached and revoked(turn, model, goal.digest):
        return _refuse_revoked(turn, model)
    if reached or (back and goal.digest == model.standby_digest):
        # Back to what is warm: this costs the acceptance record and no model read.
        model = turn.move(model, Trigger.RETURN_BEGUN, due_ms=answer_ms)
        turn.do(Activate(model.model, goal.release))
        return model
    wait_ms = 0 if back or goal.pinned else _spread_ms(turn, model.directive)
    return turn.move(model, Trigger.TARGETED, due_ms=turn.now_ms + wait_ms)


def _refuse_revoked(turn: Turn, model: ModelState) -> ModelState:
    return deployment.give_up(
        turn, model, Trigger.FAILED, Reason.REVOKED_RELEASE, "it was revoked since it came here"
    )


def _direction(model: ModelState, goal: Wanted) -> Move:
    """Return as what it ends: what comes where nothing answered soaks like any other."""
    if goal.release is None:
        return Move.BACK
    taken_over = model.active is not None and not goal.forward
    return Move.BACK if taken_over and moves_back(model, goal) else Move.FORWARD


def _spread_ms(turn: Turn, directive: Directive | None) -> int:
    # Not the device's bucket: the first arm would start all at once.
    if directive is None or not directive.spread_ms:
        return 0
    share = bucket_of(directive.salt, f"{turn.record.device}/spread")
    return directive.spread_ms * share // (LAST_BUCKET + 1)


def _start(turn: Turn, model: ModelState, goal: Wanted) -> None:
    if not moves_back(model, goal):
        if goal.starts is Starts.CANCELED:
            turn.move(model, Trigger.CANCELED, reason=Reason.CANCELED)
            return
        if _waits(turn, model, goal):
            reason, detail = _why(turn, model)
            if model.phase is Phase.NOTIFIED:
                turn.move(model, Trigger.HELD, due_ms=model.due_ms, reason=reason, detail=detail)
            elif (reason, detail) != (model.reason, model.detail):
                # The stop that held it up was lifted, but its time had run out meanwhile.
                turn.put(replace(model, reason=reason, detail=detail[:300]))
            return
    if model.phase is Phase.QUEUED:
        reason = None if model.reason in _HELD else model.reason
        model = turn.move(
            model, Trigger.RELEASED, due_ms=model.due_ms, reason=reason, detail=model.detail
        )
    if model.due_ms is not None and turn.now_ms < model.due_ms:
        return
    if goal.release is not None:
        turn.move(model, Trigger.STARTED, due_ms=turn.now_ms + FETCH_MS)
        turn.do(Fetch(model.model, goal.release))


def _waits(turn: Turn, model: ModelState, goal: Wanted) -> bool:
    """Say whether a forward move may not start now."""
    if not forward_allowed(turn, model, goal) or goal.starts is Starts.PAUSED:
        return True
    # Who has no model at all may still take what it had accepted in time.
    return not goal.pinned and model.active is not None and _expired(turn, model)


def _why(turn: Turn, model: ModelState) -> tuple[Reason | None, str]:
    stop = turn.record.stop
    if stop is not None and stop.stopped:
        return Reason.STOPPED, stop.reason
    if _expired(turn, model):
        return Reason.EXPIRED, "the directive expired before this device began"
    return model.reason, model.detail


def _expired(turn: Turn, model: ModelState) -> bool:
    return model.directive is not None and turn.trusted_ms >= model.directive.expires_ms


def _go_on(turn: Turn, model: ModelState, goal: Wanted) -> None:
    back = moves_back(model, goal)
    if goal.release is None or not (back or forward_allowed(turn, model, goal)):
        return
    if revoked(turn, model, goal.digest):
        interrupt(turn, model)
        _refuse_revoked(turn, model)
        return
    shadowing = model.phase is Phase.SHADOWING
    if goal.activation is Activation.ACTIVE:
        if shadowing:
            turn.do(StopShadow(model.model))
        model = replace(model, move=_direction(model, goal))
        turn.move(model, Trigger.ACTIVATION_BEGUN, due_ms=turn.now_ms + ANSWER_MS)
        turn.do(Activate(model.model, goal.release))
    elif goal.activation is Activation.SHADOW and not shadowing and model.active is not None:
        turn.move(model, Trigger.SHADOWED)
        turn.do(StartShadow(model.model, goal.release))
    elif goal.activation is Activation.STAGE_ONLY and shadowing:
        turn.move(model, Trigger.UNSHADOWED)
        turn.do(StopShadow(model.model))


def _tidy(turn: Turn, name: str) -> None:
    """Give up the standby when the directive no longer wants one, and files beyond the last."""
    model = turn.model(name)
    if model.phase not in _TIDY:
        return
    directive = model.directive
    settled_well = model.phase in (Phase.IDLE, Phase.SUCCEEDED, Phase.ROLLED_BACK)
    unwanted = directive is not None and directive.standby is None and not model.disabled
    if model.standby is not None and unwanted and settled_well:
        model = turn.put(replace(model, standby=None))
        turn.do(DropStandby(name))
    needed = {model.active_digest, model.standby_digest, model.target}
    spare = [item for item in model.admitted if item.ref.digest not in needed]
    surplus = spare[: max(0, len(model.admitted) - RELEASES_KEPT)]
    if surplus:
        gone = {item.ref.digest for item in surplus}
        kept = [item for item in model.admitted if item.ref.digest not in gone]
        turn.put(replace(model, admitted=kept))
        turn.do(*(Discard(name, item.ref.digest) for item in surplus))

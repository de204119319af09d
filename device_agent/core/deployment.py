"""Deployments: from what is wanted to the next effect, one model at a time.

Level-triggered: :func:`pursue` compares what is wanted with what is, and may be called at any time
and any number of times. What is wanted is decided in :mod:`device_agent.core.precedence`; a stop,
a local revert or a quarantine holds this module back from going there. A move back to a release
that the device holds warm, or to nothing, is always allowed and needs neither connection nor
download; only forward moves wait.
"""

from msgspec.structs import replace

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
from device_agent.core.precedence import Wanted, wanted
from device_agent.core.state import DISABLED, Admitted, ModelState, Move
from device_agent.core.transitions import GIVEN_UP, SETTLED, WAITING, Trigger
from device_agent.core.turn import Turn
from fleet_contract.bucket import LAST_BUCKET, bucket_of
from fleet_contract.errors import Reason
from fleet_contract.messages.progress import Phase
from fleet_contract.trust.directive import Activation, Directive, Starts

RELEASES_KEPT = 3
"""Releases of a model whose files stay on the device: the running one and two to go back to."""

TRIES = 2
"""A release that fails this often on a device is quarantined there."""

FETCH_ATTEMPTS = 8
"""Transient failures of one deployment before it times out; with the delays below, in 4 minutes."""

FIRST_RETRY_MS = 2_000
LONGEST_RETRY_MS = 60_000

TRANSIENT = frozenset({Reason.DOWNLOAD_FAILED, Reason.DISK_FULL})
"""Failures that say nothing about the release: try again later."""

ONCE_MORE = frozenset(
    {
        Reason.PROBE_CRASHED,
        Reason.PROBE_TIMED_OUT,
        Reason.ACTIVATION_FAILED,
        Reason.RESTARTED,
        Reason.WRONG_HASH,
        Reason.WRONG_SIZE,
    }
)
"""Failures that another cause (memory, power, a bad download) may explain once. All others are the
release's own, and final."""


def pursue(turn: Turn, name: str) -> None:
    """Bring one model nearer to what is wanted."""
    model = turn.model(name)
    goal = wanted(turn, model)
    if goal is None:
        if model.phase not in SETTLED and model.phase is not Phase.SOAKING:
            _interrupt(turn, model)
            turn.move(model, Trigger.WITHDRAWN, reason=Reason.SUPERSEDED)
        return
    if goal.digest != model.target or _may_retry(model, goal) or _drifted(model):
        model = _begin(turn, model, goal)
    match model.phase:
        case Phase.QUEUED | Phase.NOTIFIED:
            _start(turn, model, goal)
        case Phase.STAGED | Phase.SHADOWING:
            _go_on(turn, model, goal)
        case Phase.SOAKING if model.due_ms is not None and turn.now_ms >= model.due_ms:
            turn.move(model, Trigger.SOAKED)
    _tidy(turn, name)


def _may_retry(model: ModelState, goal: Wanted) -> bool:
    if model.phase not in GIVEN_UP or model.directive is None or _reached(model, goal.digest):
        return False
    return model.directive.retry > model.held_off.get(goal.digest, -1)


def _drifted(model: ModelState) -> bool:
    # An activation that was under way when the goal changed back may still have come through.
    return model.phase in (Phase.CANCELED, Phase.IDLE, Phase.ROLLED_BACK) and not _reached(
        model, model.target
    )


def _reached(model: ModelState, digest: str) -> bool:
    if digest == DISABLED:
        return model.disabled
    return not model.disabled and model.active_digest == digest


def _begin(turn: Turn, model: ModelState, goal: Wanted) -> ModelState:
    """Begin a deployment of this goal, whatever was under way."""
    _interrupt(turn, model)
    underway = model.phase not in SETTLED
    activating = model.phase is Phase.ACTIVATING
    model = replace(model, target=goal.digest, attempts=0, move=Move.FORWARD)
    directive = model.directive
    if _reached(model, goal.digest) and not activating:
        if model.phase is Phase.SOAKING:
            return turn.put(model)
        trigger = Trigger.WITHDRAWN if underway else Trigger.SETTLED
        return turn.move(model, trigger, reason=Reason.SUPERSEDED if underway else None)
    if goal.release is None:
        model = turn.move(replace(model, move=Move.BACK), Trigger.RETURN_BEGUN)
        turn.do(Disable(model.model))
        return model
    held = model.holds(goal.digest)
    if held is not None and (goal.digest == model.standby_digest or _reached(model, goal.digest)):
        # Back to what is warm: this costs the acceptance record and no model read.
        model = turn.move(replace(model, move=Move.BACK), Trigger.RETURN_BEGUN)
        turn.do(Activate(model.model, held))
        return model
    if directive is not None and model.held_off.get(goal.digest, -1) >= directive.retry:
        return turn.move(
            model, Trigger.FAILED, reason=Reason.QUARANTINED, detail="it was given up here before"
        )
    failures = dict(model.failures)
    failures.pop(goal.digest, None)
    return turn.move(
        replace(model, failures=failures),
        Trigger.TARGETED,
        due_ms=turn.now_ms + _spread_ms(turn, directive),
    )


def _spread_ms(turn: Turn, directive: Directive | None) -> int:
    # Not the device's bucket: the first arm would start all at once.
    if directive is None or not directive.spread_ms:
        return 0
    share = bucket_of(directive.salt, f"{turn.record.device}/spread")
    return directive.spread_ms * share // (LAST_BUCKET + 1)


def _interrupt(turn: Turn, model: ModelState) -> None:
    if model.phase is Phase.DOWNLOADING:
        turn.do(CancelFetch(model.model, model.target))
    elif model.phase is Phase.SHADOWING:
        turn.do(StopShadow(model.model))


def forward_allowed(turn: Turn) -> bool:
    """Say whether forward moves may be made: connected, with assignment and no stop."""
    live, stop = turn.live, turn.record.stop
    complete = live.connected and live.assignment_seen and live.stop_seen
    return complete and stop is not None and not stop.stopped


def _start(turn: Turn, model: ModelState, goal: Wanted) -> None:
    directive = model.directive
    starts = directive.starts if directive is not None else Starts.OPEN
    if starts is Starts.CANCELED:
        turn.move(model, Trigger.CANCELED, reason=Reason.CANCELED)
        return
    if not forward_allowed(turn) or starts is Starts.PAUSED:
        if model.phase is Phase.NOTIFIED:
            stopped = turn.record.stop is not None and turn.record.stop.stopped
            turn.move(
                model,
                Trigger.HELD,
                due_ms=model.due_ms,
                reason=Reason.STOPPED if stopped else model.reason,
                detail=model.detail,
            )
        return
    if model.phase is Phase.QUEUED:
        reason = None if model.reason is Reason.STOPPED else model.reason
        model = turn.move(
            model, Trigger.RELEASED, due_ms=model.due_ms, reason=reason, detail=model.detail
        )
    if model.due_ms is not None and turn.now_ms < model.due_ms:
        soonest_ms = turn.now_ms + _spread_ms(turn, directive)
        if model.reason is None and soonest_ms < model.due_ms:
            # A newer directive is in more of a hurry than the one that began this.
            model = turn.put(replace(model, due_ms=soonest_ms))
        if turn.now_ms < (model.due_ms or 0):
            return
    if goal.release is not None:
        turn.move(model, Trigger.STARTED)
        turn.do(Fetch(model.model, goal.release))


def _go_on(turn: Turn, model: ModelState, goal: Wanted) -> None:
    if goal.release is None or not forward_allowed(turn):
        return
    shadowing = model.phase is Phase.SHADOWING
    if goal.activation is Activation.ACTIVE:
        if shadowing:
            turn.do(StopShadow(model.model))
        turn.move(replace(model, move=Move.FORWARD), Trigger.ACTIVATION_BEGUN)
        turn.do(Activate(model.model, goal.release))
    elif goal.activation is Activation.SHADOW and not shadowing and model.active is not None:
        turn.move(model, Trigger.SHADOWED)
        turn.do(StartShadow(model.model, goal.release))
    elif goal.activation is Activation.STAGE_ONLY and shadowing:
        turn.move(model, Trigger.UNSHADOWED)
        turn.do(StopShadow(model.model))


def fetched(turn: Turn, name: str, admitted: Admitted) -> None:
    """The files of a release are here and verified: note that the device holds it, and probe it."""
    model = turn.model(name)
    digest = admitted.ref.digest
    others = [item for item in model.admitted if item.ref.digest != digest]
    model = turn.put(replace(model, admitted=[*others, admitted]))
    if model.phase is Phase.DOWNLOADING and model.target == digest:
        turn.move(model, Trigger.FETCHED)
        turn.do(Probe(name, admitted.ref))


def probed(turn: Turn, name: str, digest: str) -> None:
    """The release stands built and warm beside the running one."""
    model = turn.model(name)
    if model.phase is Phase.VERIFYING and model.target == digest:
        turn.move(model, Trigger.PROBED)


def activated(turn: Turn, name: str, digest: str) -> None:
    """The exchange happened: from here on this is the truth about what runs."""
    model = turn.model(name)
    if digest == DISABLED:
        model = replace(model, disabled=True, active=None, standby=model.active or model.standby)
    else:
        release = model.holds(digest)
        standby = model.active if model.active_digest != digest else model.standby
        if model.disabled and model.standby_digest != digest:
            standby = model.standby
        model = replace(model, disabled=False, active=release, standby=standby)
        if standby is not None and standby.digest == digest:
            model = replace(model, standby=None)
    model = turn.put(replace(model, changed_ms=turn.now_ms))
    if model.phase is not Phase.ACTIVATING or model.target != digest:
        return
    if model.move is Move.BACK:
        turn.move(model, Trigger.RETURNED, reason=Reason.ROLLED_BACK)
    else:
        soak_ms = model.directive.soak_ms if model.directive is not None else 0
        turn.move(model, Trigger.ACTIVATED, due_ms=turn.now_ms + soak_ms)


def failed(turn: Turn, name: str, digest: str, reason: Reason, detail: str) -> None:
    """Something about this release went wrong; what ran before still runs."""
    model = turn.model(name)
    if digest != model.target or model.phase in SETTLED or model.phase in WAITING:
        return
    if model.phase is Phase.SHADOWING:
        turn.do(StopShadow(name))
    if reason in TRANSIENT:
        model = replace(model, attempts=model.attempts + 1)
        if model.attempts >= FETCH_ATTEMPTS and model.phase is Phase.DOWNLOADING:
            give_up(turn, model, Trigger.TIMED_OUT, reason, detail)
        else:
            delay = min(LONGEST_RETRY_MS, FIRST_RETRY_MS << (model.attempts - 1))
            turn.move(
                model,
                Trigger.RETRIED,
                due_ms=turn.now_ms + delay,
                reason=reason,
                detail=detail,
            )
        return
    failures = {**model.failures, digest: model.failures.get(digest, 0) + 1}
    model = replace(model, failures=failures)
    if reason in ONCE_MORE and failures[digest] < TRIES:
        turn.move(
            model,
            Trigger.RETRIED,
            due_ms=turn.now_ms + FIRST_RETRY_MS,
            reason=reason,
            detail=detail,
        )
    elif model.phase in (Phase.DOWNLOADING, Phase.VERIFYING):
        own = reason in (Reason.PROBE_CRASHED, Reason.PROBE_TIMED_OUT)
        give_up(turn, model, Trigger.FAILED if own else Trigger.REJECTED, reason, detail)
    else:
        give_up(turn, model, Trigger.FAILED, reason, detail)


def give_up(turn: Turn, model: ModelState, trigger: Trigger, reason: Reason, detail: str) -> None:
    """End a deployment, and hold its release off until the directive's ``retry`` grows."""
    retry = model.directive.retry if model.directive is not None else 0
    model = replace(model, held_off={**model.held_off, model.target: retry})
    turn.move(model, trigger, reason=reason, detail=detail)


def revert(turn: Turn, name: str, reason: Reason, detail: str) -> None:
    """Go back to the standby without being asked, and hold the present release off."""
    model = turn.model(name)
    bad, standby = model.active_digest, model.standby
    if standby is None or not bad:
        return
    retry = model.directive.retry if model.directive is not None else 0
    model = replace(model, held_off={**model.held_off, bad: retry})
    turn.move(model, Trigger.FAILED, reason=reason, detail=detail)
    turn.do(Activate(name, standby))


def restarted_on_trial(turn: Turn, model: ModelState) -> None:
    """The process ended while a release was soaking: count it, and after two go back."""
    failures = {**model.failures, model.target: model.failures.get(model.target, 0) + 1}
    model = turn.put(replace(model, failures=failures))
    if failures[model.target] >= TRIES and model.standby is not None:
        give_up(
            turn,
            replace(model, active=model.standby, standby=None),
            Trigger.FAILED,
            Reason.RESTARTED,
            "the agent restarted twice while this release was on trial",
        )
    else:
        soak_ms = model.directive.soak_ms if model.directive is not None else 0
        turn.put(replace(model, due_ms=turn.now_ms + soak_ms))


def forget(turn: Turn, model: ModelState, digest: str) -> None:
    """A release that the record names is not usable any more: strike it, and begin anew."""
    turn.put(
        replace(
            model,
            active=None if model.active_digest == digest else model.active,
            standby=None if model.standby_digest == digest else model.standby,
            admitted=[item for item in model.admitted if item.ref.digest != digest],
            phase=Phase.IDLE,
            target="",
            due_ms=None,
            changed_ms=turn.now_ms,
        )
    )


def _tidy(turn: Turn, name: str) -> None:
    """Give up the standby when the directive no longer wants one, and files beyond the last."""
    model = turn.model(name)
    if model.phase not in SETTLED:
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

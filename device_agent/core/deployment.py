"""What came of the effects of a deployment: fetched, probed, activated, or failed.

Decides what counts as the release's own failure, what is tried again and when a release is given
up. What is asked for next is decided in :mod:`device_agent.core.pursuit`.
"""

from msgspec.structs import replace

from device_agent.core.effects import Activate, CancelFetch, Probe, StopShadow
from device_agent.core.precedence import blocks, moves_back, revoked, wanted
from device_agent.core.state import DISABLED, Admitted, ModelState, Move
from device_agent.core.transitions import GIVEN_UP, SETTLED, WAITING, Trigger
from device_agent.core.turn import Turn
from fleet_contract.errors import Reason
from fleet_contract.messages.progress import Phase

TRIES = 2
"""A release that fails this often on a device is quarantined there."""

FETCH_ATTEMPTS = 8
"""Transient failures of one deployment before it times out; with the delays below, in 4 minutes."""

FIRST_RETRY_MS = 2_000
LONGEST_RETRY_MS = 60_000

PROBE_MS = 15 * 60_000
"""A probe that has not been answered by then is lost: the prober's own limit is far below."""

ANSWER_MS = 30_000
"""An exchange that has not been answered by then is asked for again."""

QUARANTINES = 16
"""Given-up releases remembered for each model; the oldest give way."""

TRANSIENT = frozenset(
    {
        Reason.DOWNLOAD_FAILED,
        Reason.DISK_FULL,
        # Somebody between device and server, or a server that comes up: no fault of the release.
        Reason.BAD_METADATA,
        Reason.OLD_METADATA,
        Reason.EXPIRED,
        Reason.BAD_SIGNATURE,
        Reason.UNKNOWN_TARGET,
    }
)
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


def fetched(turn: Turn, name: str, admitted: Admitted) -> None:
    """The files of a release are here and verified: note that the device holds it, and probe it."""
    model = turn.model(name)
    digest = admitted.ref.digest
    others = [item for item in model.admitted if item.ref.digest != digest]
    floor = turn.record.keyset.release_floors.get(name, 0)
    if admitted.release_counter < floor:
        failed(turn, name, digest, Reason.REVOKED_RELEASE, below(admitted.release_counter, floor))
        return
    admitted = replace(admitted, ran=model.ran(digest))
    model = turn.put(replace(model, admitted=[*others, admitted]))
    if model.phase is Phase.DOWNLOADING and model.target == digest:
        turn.move(replace(model, attempts=0), Trigger.FETCHED, due_ms=turn.now_ms + PROBE_MS)
        turn.do(Probe(name, admitted.ref))


def probed(turn: Turn, name: str, digest: str) -> None:
    """The release stands built and warm beside the running one."""
    model = turn.model(name)
    if model.phase is Phase.VERIFYING and model.target == digest:
        turn.move(model, Trigger.PROBED)
    elif reverting(model) and model.standby is not None and digest == model.standby_digest:
        turn.do(Activate(name, model.standby))


def activated(turn: Turn, name: str, digest: str) -> None:
    """The exchange happened: from here on this is the truth about what runs."""
    model = turn.model(name)
    if digest == DISABLED:
        model = replace(model, disabled=True, active=None, standby=model.active or model.standby)
    else:
        known = (model.holds(digest), model.active, model.standby)
        release = next((ref for ref in known if ref is not None and ref.digest == digest), None)
        if release is None:
            return
        standby = model.active if model.active_digest != digest else model.standby
        if model.disabled and model.standby_digest != digest:
            standby = model.standby
        if standby is not None and standby.digest == digest:
            standby = None
        model = replace(
            model,
            disabled=False,
            active=release,
            standby=standby,
            admitted=[
                replace(item, ran=True) if item.ref.digest == digest else item
                for item in model.admitted
            ],
        )
    model = turn.put(replace(model, unsure=False, changed_ms=turn.now_ms))
    if model.phase in GIVEN_UP and model.target == digest and model.quarantined(digest):
        _return(turn, model)  # It came through after it had been given up.
    elif model.phase is Phase.FAILED and model.target != digest:
        turn.put(replace(model, due_ms=None))
    if model.phase is not Phase.ACTIVATING or model.target != digest:
        return
    if model.move is Move.BACK:
        turn.move(model, Trigger.RETURNED, reason=Reason.ROLLED_BACK)
    else:
        soak(turn, model, Trigger.ACTIVATED)


def soak(turn: Turn, model: ModelState, trigger: Trigger) -> ModelState:
    """Begin to watch the active release."""
    soak_ms = model.directive.soak_ms if model.directive is not None else 0
    return turn.move(model, trigger, due_ms=turn.now_ms + soak_ms)


def interrupt(turn: Turn, model: ModelState) -> None:
    """End what is under way on behalf of a deployment that is over."""
    if model.phase is Phase.DOWNLOADING:
        turn.do(CancelFetch(model.model, model.target))
    elif model.phase is Phase.SHADOWING:
        turn.do(StopShadow(model.model))


def failed(turn: Turn, name: str, digest: str, reason: Reason, detail: str) -> None:
    """Something about this release went wrong; what ran before still runs."""
    model = turn.model(name)
    if digest != model.target or model.phase in SETTLED | WAITING | {Phase.SOAKING}:
        return
    if model.phase is Phase.SHADOWING:
        turn.do(StopShadow(name))
    goal = wanted(turn, model)
    back = goal is not None and goal.digest == digest and moves_back(model, goal)
    if reason in TRANSIENT:
        model = replace(model, attempts=model.attempts + 1)
        if model.attempts >= FETCH_ATTEMPTS and model.phase is Phase.DOWNLOADING:
            # Who has nothing to stay with must not give up because the network was away.
            again = back or (model.active is None and not model.disabled)
            give_up(turn, model, Trigger.TIMED_OUT, reason, detail, again=again)
        else:
            delay_ms = min(LONGEST_RETRY_MS, FIRST_RETRY_MS << min(model.attempts - 1, 16))
            retry(turn, model, delay_ms, reason, detail)
        return
    failures = model.failures.get(digest, 0) + 1
    model = replace(model, failures={digest: failures})
    if reason in ONCE_MORE and failures < TRIES:
        retry(turn, model, 0 if back else FIRST_RETRY_MS, reason, detail)
        return
    own = reason in (Reason.PROBE_CRASHED, Reason.PROBE_TIMED_OUT, Reason.RESTARTED)
    early = model.phase in (Phase.DOWNLOADING, Phase.VERIFYING)
    trigger = Trigger.REJECTED if early and not own else Trigger.FAILED
    give_up(turn, model, trigger, reason, detail, again=back and reason in ONCE_MORE)


def retry(turn: Turn, model: ModelState, delay_ms: int, reason: Reason, detail: str) -> None:
    """Begin this deployment again after a while."""
    due_ms = turn.now_ms + delay_ms
    turn.move(model, Trigger.RETRIED, due_ms=due_ms, reason=reason, detail=detail)


def give_up(
    turn: Turn,
    model: ModelState,
    trigger: Trigger,
    reason: Reason,
    detail: str,
    *,
    again: bool = False,
) -> ModelState:
    """End a deployment, and hold its release off until the directive's ``retry`` grows; or only for
    a minute, if it must be tried ``again``.
    """
    due_ms = None
    if again:
        due_ms = turn.now_ms + LONGEST_RETRY_MS
    else:
        model = quarantine(model, model.target)
    return turn.move(model, trigger, due_ms=due_ms, reason=reason, detail=detail)


def quarantine(model: ModelState, digest: str) -> ModelState:
    """Return the model with this release held off."""
    present = model.directive.retry if model.directive is not None else 0
    others = sorted(
        ((known, at) for known, at in model.held_off.items() if known != digest),
        key=lambda entry: entry[1],
    )
    return replace(model, held_off=dict([*others[1 - QUARANTINES :], (digest, present)]))


def revert(turn: Turn, name: str, reason: Reason, detail: str) -> None:
    """Go back to the standby without being asked, and hold the present release off."""
    model = turn.model(name)
    bad, standby, assignment = model.active_digest, model.standby, turn.record.assignment
    if standby is None or not bad or model.quarantined(standby.digest):
        return
    if revoked(turn, model, standby.digest):
        return  # What is wrong with it is not known here, and it was taken out of use for a reason.
    pin = assignment.pins.get(name) if assignment is not None else None
    if (pin is not None and pin.digest == bad) or standby.digest in blocks(turn, name):
        return
    interrupt(turn, model)
    model = quarantine(replace(model, target=bad), bad)
    _return(turn, turn.move(model, Trigger.FAILED, reason=reason, detail=detail))


def _return(turn: Turn, model: ModelState) -> None:
    if model.standby is not None:
        turn.put(replace(model, unsure=True, due_ms=turn.now_ms + ANSWER_MS))
        turn.do(Activate(model.model, model.standby))


def below(counter: int, floor: int) -> str:
    """Return why a revoked release is refused."""
    return f"release counter {counter} is below the floor {floor}"


def reverting(model: ModelState) -> bool:
    """Say whether a release was given up that still answers, while its standby is called for."""
    given_up = model.phase in GIVEN_UP and model.reached(model.target)
    return given_up and model.due_ms is not None and model.standby is not None

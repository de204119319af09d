"""The start of the agent: what ran before is loaded, and what was under way is settled.

Decides what a start that was not survived means. The models are loaded by the agent's own process,
so a release that takes it down would do so at every start: after two such starts in a row the
third names the culprit, since the second loaded one release after the other and noted which.
"""

from msgspec.structs import replace

from device_agent.core import deployment
from device_agent.core.effects import Activate, Effect, Load, Persist
from device_agent.core.precedence import wanted
from device_agent.core.state import ModelState, Move, Record
from device_agent.core.transitions import Trigger
from device_agent.core.turn import Turn
from fleet_contract.errors import Reason
from fleet_contract.messages.progress import Phase
from fleet_contract.trust.directive import ReleaseRef

CONFIRMED_AFTER_MS = 1_000
"""A start is survived when anything but the answer to a load was heard; at the latest by then."""

SHADOW_TRIAL_MS = 10 * 60_000
"""A restart this soon after a shadow run began counts against the release; later ones do not, since
shadow runs last for days and power fails."""


def load_all(turn: Turn) -> None:
    """Load what was active and the standby beside it, of every model."""
    record = turn.record
    culprit = record.loading
    if record.models:
        unconfirmed = record.unconfirmed_boots + 1
        turn.record = replace(record, unconfirmed_boots=unconfirmed, loading="")
        turn.live = replace(turn.live, loading=True)
    for name in sorted(record.models):
        _resume(turn, turn.put(replace(turn.model(name), unsure=False)))
        if culprit:
            _spare(turn, turn.model(name), culprit)
        model = turn.model(name)
        turn.do(Load(name, model.active, model.standby))


def one_by_one(record: Record, effects: list[Effect]) -> list[Effect]:
    """Return the effects of a start; after one that was not survived, with the loads apart and
    what is being loaded stored before each.
    """
    if record.unconfirmed_boots < 2:
        return effects
    apart: list[Effect] = []
    for effect in effects:
        if not isinstance(effect, Load) or not (effect.active or effect.standby):
            apart.append(effect)
            continue
        for active, standby in ((effect.active, None), (None, effect.standby)):
            release = active or standby
            if release is not None:
                apart += [
                    Persist(replace(record, loading=release.digest)),
                    Load(effect.model, active, standby),
                ]
        apart.append(Persist(record))
    return apart


def confirm(turn: Turn) -> None:
    """Note that the loads were survived."""
    turn.live = replace(turn.live, loading=False)
    turn.record = replace(turn.record, unconfirmed_boots=0, loading="")


def load_failed(turn: Turn, model: ModelState) -> None:
    """What was active does not load: its files cannot be trusted. The standby takes over while it
    is fetched, as far as its files are damaged, and tried anew.
    """
    model = _strike(turn, model)
    if model.active is not None:
        turn.do(Activate(model.model, model.active))


def _resume(turn: Turn, model: ModelState) -> None:
    name, target = model.model, model.target
    match model.phase:
        case Phase.SOAKING:
            _restarted_on_trial(turn, model)
        case Phase.ACTIVATING if model.move is Move.BACK or model.reached(target):
            # The acceptance was stored, the exchange was not confirmed: go back right now. Having
            # no target makes the next look at what is wanted begin it anew.
            turn.move(replace(model, target=""), Trigger.FORGOTTEN)
        case Phase.ACTIVATING | Phase.VERIFYING:
            detail = "the agent restarted while it tried or activated this release"
            deployment.failed(turn, name, target, Reason.RESTARTED, detail)
        case Phase.SHADOWING if turn.now_ms - model.changed_ms < SHADOW_TRIAL_MS:
            detail = "the agent restarted soon after the shadow run began"
            deployment.failed(turn, name, target, Reason.RESTARTED, detail)
        case Phase.DOWNLOADING | Phase.STAGED | Phase.SHADOWING:
            # It starts over from what is in the store; nobody is to blame.
            detail = "the agent restarted before this release was active"
            delay_ms = deployment.FIRST_RETRY_MS
            deployment.retry(turn, model, delay_ms, Reason.DOWNLOAD_FAILED, detail)
        case _ if deployment.reverting(model):
            # The given-up one stays beside it: should the standby not load, it is all there is.
            turn.put(replace(model, active=model.standby, standby=model.active, due_ms=None))


def _restarted_on_trial(turn: Turn, model: ModelState) -> None:
    """The process ended while a release was soaking: count it, and after two go back."""
    failures = model.failures.get(model.target, 0) + 1
    model = turn.put(replace(model, failures={model.target: failures}))
    if failures >= deployment.TRIES and model.standby is not None:
        detail = "the agent restarted twice while this release was on trial"
        _fall_back(turn, model, model.active, detail)
    else:
        soak_ms = model.directive.soak_ms if model.directive is not None else 0
        turn.put(replace(model, due_ms=turn.now_ms + soak_ms))


def _spare(turn: Turn, model: ModelState, culprit: str) -> None:
    """Do not load again what took the agent down."""
    if model.standby_digest == culprit:
        turn.put(replace(model, standby=None))
    elif model.active_digest == culprit and model.standby is not None:
        detail = "the agent ended twice while it loaded this release"
        _fall_back(turn, model, None, detail)
    elif model.active_digest == culprit:
        goal = wanted(turn, model)
        if goal is not None and goal.digest == culprit:
            _strike(turn, model)  # It comes back through the probe's child, without network.


def _fall_back(turn: Turn, model: ModelState, beside: ReleaseRef | None, detail: str) -> None:
    """Let the standby take over for good; ``beside`` is what stays warm instead."""
    model = replace(
        model, target=model.active_digest, active=model.standby, standby=beside, disabled=False
    )
    deployment.give_up(turn, model, Trigger.FAILED, Reason.RESTARTED, detail)


def _strike(turn: Turn, model: ModelState) -> ModelState:
    """Let the standby, if there is one, stand in the place of what was active, and begin anew."""
    model = replace(model, active=model.standby, standby=None, target="")
    return turn.move(model, Trigger.FORGOTTEN)

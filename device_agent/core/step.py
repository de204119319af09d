"""The agent's core: one function from state, event and time to a new state and effects."""

from msgspec.structs import replace

from device_agent.core import admission, deployment, reporting
from device_agent.core.effects import (
    Activate,
    Connect,
    Effect,
    Load,
    Publish,
    ReportEvery,
    Subscribe,
    WakeAt,
)
from device_agent.core.events import (
    Activated,
    Booted,
    Connected,
    Disconnected,
    Event,
    Failed,
    Fetched,
    GuardTripped,
    KeysetFetched,
    Probed,
    Received,
    Tick,
)
from device_agent.core.state import Admitted, Live, Move, State
from device_agent.core.transitions import STARTED
from device_agent.core.turn import Turn
from fleet_contract import topics
from fleet_contract.errors import Reason
from fleet_contract.messages.progress import Phase
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust.directive import ReleaseRef


def step(state: State, event: Event, now_ms: int) -> tuple[State, list[Effect]]:
    """Take one event in.

    Args:
        state: what the agent remembers.
        event: what happened.
        now_ms: the device's time in milliseconds since 1970.

    Returns:
        The new state, and what the shell must do, in order. A changed record comes first, as
        ``Persist``: nothing that follows from it may be done before it is stored.
    """
    turn = Turn(state, now_ms)
    _take(turn, event)
    for name in sorted(turn.record.models):
        deployment.pursue(turn, name)
    reporting.report_progress(turn, state)
    wake_ms = _next_wake(turn)
    if wake_ms is not None:
        turn.do(WakeAt(wake_ms))
    return turn.end()


def _take(turn: Turn, event: Event) -> None:
    match event:
        case Booted():
            _booted(turn, event)
        case Connected():
            _connected(turn)
        case Disconnected():
            turn.live = replace(turn.live, connected=False, assignment_seen=False, stop_seen=False)
            _connect(turn)
        case Received(topic, payload):
            admission.receive(turn, topic, payload)
        case KeysetFetched(envelope):
            admission.refreshed(turn, envelope)
        case Fetched(model, digest, manifest, version, release_counter):
            release = ReleaseRef(manifest, digest)
            admitted = Admitted(release, version, release_counter, turn.now_ms)
            deployment.fetched(turn, model, admitted)
        case Probed(model, digest):
            deployment.probed(turn, model, digest)
        case Activated(model, digest):
            deployment.activated(turn, model, digest)
        case Failed(model, digest, reason, detail):
            _failed(turn, event)
        case GuardTripped(model, digest, reason, detail):
            if turn.model(model).active_digest == digest:
                deployment.revert(turn, model, reason, detail)
        case Tick():
            pass  # Time alone may let a deployment go on: pursue looks at it.


def _booted(turn: Turn, event: Booted) -> None:
    turn.record = replace(turn.record, boot=turn.record.boot + 1)
    turn.live = Live(session=event.session, agent=event.agent, capabilities=event.capabilities)
    for name in sorted(turn.record.models):
        directive = turn.model(name).directive
        if directive is not None:
            arm = directive.arm_for(turn.record.device)
            every_ms = arm.report_every_ms if arm is not None else directive.report_every_ms
            turn.do(ReportEvery(name, every_ms))
        _resume(turn, name)
        model = turn.model(name)
        turn.do(Load(name, model.active, model.standby))
    _connect(turn)


def _resume(turn: Turn, name: str) -> None:
    """Settle what was under way when the process ended."""
    model = turn.model(name)
    if model.phase is Phase.SOAKING:
        deployment.restarted_on_trial(turn, model)
    elif model.phase is Phase.ACTIVATING and model.move is Move.BACK:
        # The acceptance was stored, the exchange was not confirmed: go back right now. Having no
        # target makes the next look at what is wanted begin it anew.
        turn.put(replace(model, phase=Phase.IDLE, target=""))
    elif model.phase in STARTED:
        # Whatever was under way starts over from what is in the store.
        deployment.failed(turn, name, model.target, *_interruption(model.phase))


def _interruption(phase: Phase) -> tuple[Reason, str]:
    if phase is Phase.ACTIVATING:
        return Reason.RESTARTED, "the agent restarted while it activated this release"
    return Reason.DOWNLOAD_FAILED, "the agent restarted before this release was active"


def _connect(turn: Turn) -> None:
    turn.live = replace(turn.live, births=turn.live.births + 1)
    turn.do(Connect(*reporting.presence(turn, online=False)))


def _connected(turn: Turn) -> None:
    turn.live = replace(turn.live, connected=True)
    fleet, device = turn.record.fleet, turn.record.device
    filters = [
        topics.stop(fleet),
        topics.device(fleet, device, DeviceChannel.ASSIGNMENT),
        topics.device(fleet, device, DeviceChannel.ACK),
    ]
    if turn.record.assignment is not None:
        filters.append(topics.directives(fleet, turn.record.assignment.cohort))
    turn.do(Subscribe(tuple(filters)))
    topic, payload = reporting.presence(turn, online=True)
    turn.do(Publish(topic, payload, retain=True))


def _failed(turn: Turn, event: Failed) -> None:
    model = turn.model(event.model)
    if event.digest == model.active_digest:
        # The active release itself did not load at start. Its files cannot be trusted: the standby
        # takes over while it is fetched anew, as if the device had never had it.
        deployment.forget(turn, model, event.digest)
        if model.standby is not None:
            turn.do(Activate(event.model, model.standby))
    elif model.active is None and event.digest == model.standby_digest:
        deployment.forget(turn, model, event.digest)
    else:
        deployment.failed(turn, event.model, event.digest, event.reason, event.detail)


def _next_wake(turn: Turn) -> int | None:
    times = [
        model.due_ms
        for model in turn.record.models.values()
        if model.due_ms is not None and model.phase in STARTED | {Phase.NOTIFIED}
    ]
    live = turn.live
    if live.connected and live.progress_acknowledged < live.progress_sequence:
        times.append(live.progress_sent_ms + reporting.REPEAT_MS)
    return min(times, default=None)

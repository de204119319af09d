"""The agent's core: one function from state, event and time to a new state and effects."""

from msgspec.structs import replace

from device_agent.core import admission, deployment, loading, pursuit, reporting
from device_agent.core.effects import (
    Connect,
    Effect,
    FetchKeyset,
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
    RootRefused,
    RootTaken,
    Tick,
)
from device_agent.core.state import Admitted, Live, State
from device_agent.core.transitions import GIVEN_UP, STARTED
from device_agent.core.turn import Turn
from fleet_contract import topics
from fleet_contract.errors import Refused
from fleet_contract.messages.progress import Phase
from fleet_contract.trust.directive import ReleaseRef

_TIMED = STARTED | GIVEN_UP | {Phase.NOTIFIED}


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
        pursuit.pursue(turn, name)
    admission.ask_again(turn)
    reporting.report_progress(turn, state)
    wake_ms = _next_wake(turn)
    if wake_ms is not None:
        turn.do(WakeAt(wake_ms))
    after, effects = turn.end()
    if isinstance(event, Booted):
        effects = loading.one_by_one(after.record, effects)
    return after, effects


def _take(turn: Turn, event: Event) -> None:
    if turn.live.loading and not isinstance(event, Booted | Failed | Activated):
        loading.confirm(turn)
    match event:
        case Booted():
            _booted(turn, event)
        case Connected(metadata):
            turn.live = replace(turn.live, metadata=metadata)
            _connected(turn)
        case Disconnected():
            turn.live = replace(
                turn.live,
                connected=False,
                assignment_seen=False,
                stop_seen=False,
                directives_seen=frozenset(),
                parked=None,
                keyset_asks=0,
            )
            _connect(turn)
        case Received(topic, payload):
            admission.receive(turn, topic, payload)
        case KeysetFetched(document):
            admission.refreshed(turn, document)
        case RootTaken():
            turn.do(FetchKeyset())
        case RootRefused(reason, detail):
            admission.refuse(turn, topics.root(turn.record.fleet), Refused(reason, detail))
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
    loading.load_all(turn)
    _connect(turn)


def _connect(turn: Turn) -> None:
    turn.live = replace(turn.live, births=turn.live.births + 1)
    turn.do(Connect(*reporting.presence(turn, online=False)))


def _connected(turn: Turn) -> None:
    turn.live = replace(turn.live, connected=True)
    turn.do(Subscribe(admission.filters(turn)))
    topic, payload = reporting.presence(turn, online=True)
    turn.do(Publish(topic, payload, retain=True))


def _failed(turn: Turn, event: Failed) -> None:
    model = turn.model(event.model)
    # Loads are answered before anything else is heard. Later, a failure of what is active can only
    # be the late answer to an older attempt.
    if turn.live.loading and model.active is not None and event.digest == model.active_digest:
        loading.load_failed(turn, model)
    else:
        deployment.failed(turn, event.model, event.digest, event.reason, event.detail)


def _next_wake(turn: Turn) -> int | None:
    times = [
        model.due_ms
        for model in turn.record.models.values()
        if model.due_ms is not None and model.phase in _TIMED
    ]
    if turn.live.loading:
        times.append(turn.now_ms + loading.CONFIRMED_AFTER_MS)
    for at_ms in (reporting.next_repeat_ms(turn), admission.next_ask_ms(turn)):
        if at_ms is not None:
            times.append(at_ms)
    return min(times, default=None)

"""Control documents: how a message from the broker becomes part of the record, or a refusal.

The checks and their order are the contract's (fleet_contract.trust.checks); this module performs
the last two of them: the acceptance goes into the record, and is persisted, before anything is
done about the document.
"""

from msgspec.structs import replace

from device_agent.core.effects import (
    Acknowledged,
    FetchKeyset,
    ReportEvery,
    Subscribe,
    TakeRoot,
    Unsubscribe,
)
from device_agent.core.state import MODELS
from device_agent.core.turn import Turn
from fleet_contract import limits, topics
from fleet_contract.errors import InvalidName, Reason, Refused
from fleet_contract.messages.progress import Refusal
from fleet_contract.messages.report import read_ack
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust import checks, keyset
from fleet_contract.trust.checks import Acceptance, Audience

KEYSET_EVERY_MS = 10_000
KEYSET_SELDOM_MS = 640_000
"""An unknown key makes the device ask for the keyset at most this often, and as long as the message
that it signed waits, twice as late each time."""

ACCEPTANCES = 256
"""Acceptances remembered: those of the present cohort, and of the cohorts that the device left as
far as there is room. A device that comes back to another is told the least epochs it may accept."""

REFUSALS = 16
"""Refusals remembered until they are reported; the oldest give way."""


def receive(turn: Turn, topic: str, payload: bytes) -> None:
    """Take a message in; whatever is wrong with it becomes a refusal that is reported."""
    fleet, device = turn.record.fleet, turn.record.device
    try:
        if topic == topics.device(fleet, device, DeviceChannel.ACK):
            _acknowledgement(turn, payload)
        elif not payload:
            return  # A cleared topic says nothing; what was accepted stays accepted.
        elif topic == topics.root(fleet):
            _root(turn, payload)
        elif topic == topics.stop(fleet):
            _stop(turn, payload)
        elif topic == topics.device(fleet, device, DeviceChannel.ASSIGNMENT):
            _assignment(turn, payload)
        else:
            _directive(turn, topic, payload)
    except InvalidName as error:
        refuse(turn, topic, Refused(Reason.MALFORMED, str(error)))
    except Refused as refusal:
        if refusal.reason in (Reason.UNKNOWN_KEY, Reason.UNCONFIRMED_GENERATION):
            _park(turn, topic, payload)
        refuse(turn, topic, refusal)


def refuse(turn: Turn, topic: str, refusal: Refused) -> None:
    """Remember a refusal until the server acknowledged that it knows."""
    entry = Refusal(topic[:300], refusal.reason, refusal.detail[:300], turn.now_ms)
    known = [item for _, item in turn.live.refusals]
    if any((item.topic, item.reason) == (entry.topic, entry.reason) for item in known):
        return
    sequence = turn.live.progress_sequence + 1
    refusals = [*turn.live.refusals, (sequence, entry)][-REFUSALS:]
    turn.live = replace(turn.live, refusals=refusals)


def refreshed(turn: Turn, document: bytes) -> None:
    """Believe a keyset that the metadata vouches for, and look at the parked message again."""
    record = turn.record
    try:
        fresh = keyset.read_keyset(document, fleet=record.fleet, held=record.keyset)
    except Refused as refusal:
        refuse(turn, topics.root(record.fleet), refusal)
        return
    parked = turn.live.parked
    turn.live = replace(turn.live, parked=None)
    if fresh != record.keyset:
        # One message is kept, more may have been refused: the broker holds them all.
        turn.record = replace(record, keyset=fresh)
        turn.live = replace(turn.live, keyset_asks=0)
        if turn.live.connected:
            turn.do(Subscribe(filters(turn)))
    if parked is not None:
        receive(turn, *parked)


def filters(turn: Turn) -> tuple[str, ...]:
    """Return what this device subscribes to."""
    record = turn.record
    wanted = [
        topics.stop(record.fleet),
        topics.root(record.fleet),
        topics.device(record.fleet, record.device, DeviceChannel.ASSIGNMENT),
        topics.device(record.fleet, record.device, DeviceChannel.ACK),
    ]
    if record.assignment is not None:
        wanted.append(topics.directives(record.fleet, record.assignment.cohort))
    return tuple(wanted)


def next_ask_ms(turn: Turn) -> int | None:
    """Return when the keyset is asked for again; None if nothing waits for it."""
    live = turn.live
    if live.parked is None or live.keyset_asked_ms is None:
        return None
    delay_ms = min(KEYSET_SELDOM_MS, KEYSET_EVERY_MS << min(max(live.keyset_asks - 1, 0), 16))
    if turn.now_ms < live.keyset_asked_ms:
        return turn.now_ms  # The clock was set back.
    return live.keyset_asked_ms + delay_ms


def ask_again(turn: Turn) -> None:
    """Ask for the keyset again if a message has waited for it long enough."""
    due_ms = next_ask_ms(turn)
    if due_ms is not None and turn.now_ms >= due_ms:
        _ask(turn)


def _park(turn: Turn, topic: str, payload: bytes) -> None:
    turn.live = replace(turn.live, parked=(topic, payload))
    if turn.live.keyset_asked_ms is None:
        _ask(turn)
    else:
        ask_again(turn)


def _ask(turn: Turn) -> None:
    asks = turn.live.keyset_asks + 1
    turn.live = replace(turn.live, keyset_asked_ms=turn.now_ms, keyset_asks=asks)
    turn.do(FetchKeyset())


def _root(turn: Turn, payload: bytes) -> None:
    # No director signs it: the root that is held decides, where the metadata is.
    if len(payload) > limits.ROOT_BYTES:
        raise Refused(Reason.TOO_LARGE, f"a root of {len(payload)} bytes")
    turn.do(TakeRoot(payload))


def _stop(turn: Turn, payload: bytes) -> None:
    record = turn.record
    accepted = checks.check_stop(
        payload, keyset=record.keyset, fleet=record.fleet, held=record.acceptances.get("stop")
    )
    turn.live = replace(turn.live, stop_seen=True)
    if not accepted.repeated:
        turn.record = replace(record, stop=accepted.document)
        _accept(turn, "stop", accepted.acceptance, accepted.document.issued_ms)


def _assignment(turn: Turn, payload: bytes) -> None:
    record = turn.record
    accepted = checks.check_assignment(
        payload,
        keyset=record.keyset,
        fleet=record.fleet,
        device=record.device,
        held=record.acceptances.get("assignment"),
    )
    turn.live = replace(turn.live, assignment_seen=True)
    if accepted.repeated:
        return
    before, after = record.assignment, accepted.document
    turn.record = replace(record, assignment=after)
    _accept(turn, "assignment", accepted.acceptance, after.issued_ms)
    if before is None or before.cohort != after.cohort:
        # What another cohort's directive wanted no longer counts; what runs goes on running.
        models = {
            name: replace(model, directive=None) for name, model in turn.record.models.items()
        }
        turn.record = replace(turn.record, models=models)
        if before is not None:
            turn.do(Unsubscribe((topics.directives(record.fleet, before.cohort),)))
        turn.do(Subscribe((topics.directives(record.fleet, after.cohort),)))
    for name in sorted(after.pins):
        if name not in turn.record.models and _has_room(turn):
            turn.put(turn.model(name))
    # What is older than the fleet now demands is no order any more.
    seen = {name for name in turn.live.directives_seen if not _outdated(turn, name)}
    turn.live = replace(turn.live, directives_seen=frozenset(seen))


def _outdated(turn: Turn, name: str) -> bool:
    directive, assignment = turn.model(name).directive, turn.record.assignment
    if directive is None or assignment is None:
        return True
    return directive.epoch < assignment.minimum_epochs.get(name, 0)


def _has_room(turn: Turn) -> bool:
    """Say whether there is room for one more model, having struck what is of no use."""
    models = turn.record.models
    if len(models) >= MODELS:
        used = {
            name: model
            for name, model in models.items()
            if model.directive or model.active or model.standby or model.admitted
        }
        if len(used) < len(models):
            turn.record = replace(turn.record, models=used)
    return len(turn.record.models) < MODELS


def _directive(turn: Turn, topic: str, payload: bytes) -> None:
    record = turn.record
    fleet, cohort, name = topics.read_directive(topic)
    assignment = record.assignment
    if assignment is None or (fleet, cohort) != (record.fleet, assignment.cohort):
        raise Refused(Reason.WRONG_AUDIENCE, f"this device is not in cohort {cohort}")
    if name not in record.models and not _has_room(turn):
        raise Refused(Reason.TOO_LARGE, f"a device runs at most {MODELS} models")
    key = f"{cohort}/{name}"
    accepted = checks.check_directive(
        payload,
        keyset=record.keyset,
        audience=Audience(record.fleet, cohort, name),
        held=record.acceptances.get(key),
        minimum_epoch=assignment.minimum_epochs.get(name, 0),
        now_ms=turn.trusted_ms,
    )
    directive = accepted.document
    turn.live = replace(turn.live, directives_seen=turn.live.directives_seen | {name})
    model = turn.model(name)
    if accepted.repeated and model.directive is not None:
        return
    if model.directive is None:
        # Each cohort counts its own retries: what was given up is held off until this one's grows.
        model = replace(model, held_off=dict.fromkeys(model.held_off, directive.retry))
    turn.put(replace(model, directive=directive))
    _accept(turn, key, accepted.acceptance, directive.issued_ms)
    arm = directive.arm_for(record.device)
    turn.do(ReportEvery(name, arm.report_every_ms if arm else directive.report_every_ms))


def _accept(turn: Turn, key: str, acceptance: Acceptance, issued_ms: int) -> None:
    # 8. Persist: Turn.end puts the record in front of every effect.  9. Act: what follows.
    acceptances = {**turn.record.acceptances, key: acceptance}
    if len(acceptances) > ACCEPTANCES:
        assignment = turn.record.assignment
        here = f"{assignment.cohort}/" if assignment is not None else ""
        for left in [name for name in acceptances if "/" in name and not name.startswith(here)]:
            if len(acceptances) > ACCEPTANCES:
                del acceptances[left]
    turn.record = replace(
        turn.record,
        acceptances=acceptances,
        time_floor_ms=max(turn.record.time_floor_ms, issued_ms),
    )


def _acknowledgement(turn: Turn, payload: bytes) -> None:
    ack = read_ack(payload)
    live = turn.live
    if ack.session == live.session and ack.progress > live.progress_acknowledged:
        turn.live = replace(
            live,
            progress_acknowledged=min(ack.progress, live.progress_sequence),
            refusals=[item for item in live.refusals if item[0] > ack.progress],
        )
    turn.do(Acknowledged(ack))

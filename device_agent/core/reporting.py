"""What the device says about itself: presence and progress.

Progress is sent when it changed, and again until the server acknowledged it. Telemetry windows
are kept in :mod:`device_agent.core.outbox`.
"""

from msgspec.structs import replace

from device_agent.core.effects import Publish
from device_agent.core.state import State
from device_agent.core.turn import Turn
from fleet_contract import WIRE_VERSION, codec, topics
from fleet_contract.messages.presence import Presence
from fleet_contract.messages.progress import ModelProgress, Progress
from fleet_contract.topics import DeviceChannel

REPEAT_MS = 5_000
"""Progress that is not acknowledged is sent again after this time."""

_BIRTHS_PER_BOOT = 1 << 20


def presence(turn: Turn, *, online: bool) -> tuple[str, bytes]:
    """Return topic and payload of the birth message of the present connection, or of its will."""
    record, live = turn.record, turn.live
    message = Presence(
        online=online,
        birth=record.boot * _BIRTHS_PER_BOOT + live.births,
        session=live.session,
        wire=WIRE_VERSION,
        agent=live.agent,
        capabilities=live.capabilities if online else None,
        active={name: model.active_digest for name, model in record.models.items()},
    )
    topic = topics.device(record.fleet, record.device, DeviceChannel.PRESENCE)
    return topic, codec.encode_msgpack(message)


def progress_of(turn: Turn) -> list[ModelProgress]:
    """Return where the device stands with each model."""
    return [
        ModelProgress(
            model=name,
            rollout=model.directive.rollout if model.directive is not None else "",
            phase=model.phase,
            target=model.target,
            active=model.active_digest,
            standby=model.standby_digest,
            generation=model.directive.generation if model.directive is not None else 0,
            epoch=model.directive.epoch if model.directive is not None else 0,
            changed_ms=model.changed_ms,
            reason=model.reason,
            detail=model.detail,
        )
        for name, model in sorted(turn.record.models.items())
    ]


def report_progress(turn: Turn, before: State) -> None:
    """Publish progress if it changed in this turn, or was not acknowledged in time."""
    live = turn.live
    known = {sequence for sequence, _ in before.live.refusals}
    refused = any(sequence not in known for sequence, _ in live.refusals)
    changed = refused or turn.record.models != before.record.models
    if changed:
        live = turn.live = replace(live, progress_sequence=live.progress_sequence + 1)
    if not live.connected:
        return
    fresh_connection = not before.live.connected
    unacknowledged = live.progress_acknowledged < live.progress_sequence
    overdue = unacknowledged and turn.now_ms - live.progress_sent_ms >= REPEAT_MS
    if not (changed or fresh_connection or overdue):
        return
    message = Progress(
        session=live.session,
        boot=turn.record.boot,
        sequence=live.progress_sequence,
        models=progress_of(turn),
        refusals=[refusal for _, refusal in live.refusals],
    )
    turn.live = replace(live, progress_sent_ms=turn.now_ms)
    topic = topics.device(turn.record.fleet, turn.record.device, DeviceChannel.PROGRESS)
    turn.do(Publish(topic, codec.encode_msgpack(message), retain=False))

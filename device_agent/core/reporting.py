"""What the device says about itself: presence and progress.

Progress is sent when it changed, and again until the server acknowledged it. Telemetry windows
are kept in :mod:`device_agent.core.outbox`.
"""

from msgspec.structs import replace

from device_agent.core.effects import Publish
from device_agent.core.state import State
from device_agent.core.turn import Turn
from fleet_contract import WIRE_VERSION, codec, limits, topics
from fleet_contract.messages.presence import Presence, Seen
from fleet_contract.messages.progress import ModelProgress, Progress
from fleet_contract.topics import DeviceChannel

REPEAT_MS = 5_000
LONGEST_REPEAT_MS = 320_000
"""Progress that is not acknowledged is sent again after this time, and twice as late each time, so
that a fleet does not keep a server down that has just come back."""

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
        seen=_seen(turn),
    )
    topic = topics.device(record.fleet, record.device, DeviceChannel.PRESENCE)
    return topic, codec.encode_msgpack(message)


def _seen(turn: Turn) -> Seen:
    """Return below what this device believes nobody."""
    record = turn.record
    accepted = record.acceptances.values()
    demanded = record.assignment.minimum_epochs.values() if record.assignment is not None else ()
    return replace(
        turn.live.metadata,
        generation=max([record.keyset.generation, *(item.generation for item in accepted)]),
        epoch=max([record.keyset.epoch_floor, *(item.epoch for item in accepted), *demanded]),
        release_floors=dict(sorted(record.keyset.release_floors.items())[: limits.FAMILIES]),
    )


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
    fresh = changed or not before.live.connected
    due_ms = next_repeat_ms(turn)
    if not fresh and (due_ms is None or turn.now_ms < due_ms):
        return
    turn.live = replace(
        live,
        progress_sent_ms=turn.now_ms,
        progress_repeats=0 if fresh else live.progress_repeats + 1,
    )
    topic = topics.device(turn.record.fleet, turn.record.device, DeviceChannel.PROGRESS)
    turn.do(Publish(topic, _message(turn), retain=False))


def next_repeat_ms(turn: Turn) -> int | None:
    """Return when progress is sent again that was not acknowledged; None if nothing is owed."""
    live = turn.live
    if not live.connected or live.progress_acknowledged >= live.progress_sequence:
        return None
    delay_ms = min(LONGEST_REPEAT_MS, REPEAT_MS << min(live.progress_repeats, 16))
    if turn.now_ms < live.progress_sent_ms:
        return turn.now_ms  # The clock was set back.
    return live.progress_sent_ms + delay_ms


def _message(turn: Turn) -> bytes:
    live = turn.live
    message = Progress(
        session=live.session,
        boot=turn.record.boot,
        sequence=live.progress_sequence,
        models=progress_of(turn),
        refusals=[refusal for _, refusal in live.refusals],
    )
    payload = codec.encode_msgpack(message)
    if len(payload) > limits.STATUS_BYTES:
        # Details are for people; the codes, which decide, always fit.
        message = replace(
            message,
            models=[replace(item, detail="") for item in message.models],
            refusals=[replace(item, detail="") for item in message.refusals],
        )
        payload = codec.encode_msgpack(message)
    return payload

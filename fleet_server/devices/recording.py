"""Stores what devices say of themselves: presence, progress and refusals.

Decides which message wins. A will of an older connection never does, nor does a progress message
below the highest (boot, sequence); a repeated one changes nothing and is acknowledged again. What
a state means for a rollout is not decided here.
"""

from collections.abc import Sequence

import msgspec
import structlog
from sqlmodel import Session

from fleet_contract.errors import Reason, Refused
from fleet_contract.messages.presence import Presence
from fleet_contract.messages.progress import ModelProgress, Progress
from fleet_server.audit import service as audit
from fleet_server.devices import certificates, repository, sightings, state_repository
from fleet_server.dispatch.inbound import DeviceAck, Inbound

REFUSALS_KEPT = 100
# The databases' integers have 63 bits; MessagePack's have 64.
LARGEST = 2**63 - 1
ROLLOUT_CHARACTERS = 64
DETAIL_CHARACTERS = 1000

log = structlog.get_logger(__name__)


def handle_presence(session: Session, inbound: Sequence[Inbound], now_ms: int) -> list[DeviceAck]:
    """Store a batch of presence messages; the handler for ingest."""
    enrolled, _held = _of_enrolled(session, inbound)
    known = {item.device for item in enrolled}
    strangers = [item for item in inbound if item.device not in known]
    known |= sightings.note_strangers(session, strangers)
    sightings.note_seen(session, [item for item in inbound if item.device in known])
    for item in enrolled:
        if isinstance(item.message, Presence):
            try:
                record_presence(session, item.fleet, item.device, item.message, item.received_ms)
            except Refused as error:
                log.warning("presence refused", device=item.device, reason=error.reason.value)
    return []


def handle_progress(session: Session, inbound: Sequence[Inbound], now_ms: int) -> list[DeviceAck]:
    """Store a batch of progress messages and acknowledge them; the handler for ingest."""
    acks = []
    enrolled, _held = _of_enrolled(session, inbound)
    for item in enrolled:
        if isinstance(item.message, Progress):
            try:
                committed = record_progress(
                    session, item.fleet, item.device, item.message, item.received_ms
                )
            except Refused as error:
                log.warning("progress refused", device=item.device, reason=error.reason.value)
                continue
            if committed is not None:
                acks.append(DeviceAck(item.device, item.message.session, progress=committed))
    return acks


def record_presence(
    session: Session, fleet: str, device: str, presence: Presence, now_ms: int
) -> bool:
    """Store a birth or a will, and with a birth what the device offers.

    Returns:
        False if it was of an older connection, or nothing new.

    Raises:
        Refused: ``malformed`` if a value cannot be stored.
    """
    _bound(presence.birth)
    active = {_clean(model, 64): _clean(digest, 64) for model, digest in presence.active.items()}
    row = state_repository.presence_of(session, fleet, device)
    if row is not None and presence.online and presence.session == row.replaced_session:
        # A boot session that another one had replaced speaks again: there are two devices.
        _alarm_of_clone(session, fleet, device, presence.session, now_ms)
    if row is not None and not _supersedes(presence, row.birth, row.online):
        log.debug("older presence ignored", device=device, birth=presence.birth, held=row.birth)
        return False
    seen_before = row is not None and (row.birth, row.online) == (presence.birth, presence.online)
    if row is None:
        row = state_repository.new_presence(
            fleet=fleet, device=device, session="", replaced_session=""
        )
    # A retained birth or will that the broker hands out again is no sign of life.
    if not seen_before:
        row.last_seen_ms = now_ms
    row.online = presence.online
    row.birth = presence.birth
    if row.session and presence.online and presence.session != row.session:
        row.replaced_session = row.session
    row.session = presence.session
    row.agent = _clean(presence.agent, 40)
    if presence.online or not seen_before:
        row.active = active
    state_repository.save(session, row)
    if presence.online and presence.capabilities is not None:
        _keep_capabilities(session, fleet, device, msgspec.to_builtins(presence.capabilities))
    return not seen_before


def record_progress(
    session: Session, fleet: str, device: str, progress: Progress, now_ms: int
) -> int | None:
    """Store a progress message in place of the one before it.

    Returns:
        The sequence that is now committed for the message's boot session; None if that session
        is over.

    Raises:
        Refused: ``malformed`` if a value cannot be stored.
    """
    _bound(progress.boot, progress.sequence)
    for item in progress.models:
        _bound(item.generation, item.epoch, item.changed_ms)
    _bound(*(refusal.at_ms for refusal in progress.refusals))
    if len({item.model for item in progress.models}) != len(progress.models):
        raise Refused(Reason.MALFORMED, "a model is reported twice in one message")
    head = state_repository.reported(session, fleet, device)
    if head is not None and (progress.boot, progress.sequence) <= (head.boot, head.sequence):
        return head.sequence if head.session == progress.session else None
    if head is None:
        head = state_repository.new_reported(fleet=fleet, device=device)
    head.session = progress.session
    head.boot = progress.boot
    head.sequence = progress.sequence
    head.received_ms = now_ms
    state_repository.save(session, head)
    state_repository.replace_progress(session, fleet, device, map(_cleaned, progress.models))
    _keep_refusals(session, fleet, device, progress, now_ms)
    seen = state_repository.presence_of(session, fleet, device)
    if seen is not None:
        seen.last_seen_ms = max(seen.last_seen_ms, now_ms)
        state_repository.save(session, seen)
    return progress.sequence


def _alarm_of_clone(session: Session, fleet: str, device: str, again: str, now_ms: int) -> None:
    if not certificates.raise_alarm(session, fleet, device, certificates.CLONED, now_ms):
        return
    log.error("two devices share an identity", device=device, session=again)
    audit.record(
        session,
        action="device.alarm",
        resource_type="device",
        resource_name=device,
        outcome="done",
        user="ingest",
        correlation_id="",
        detail={"session": again},
        now_ms=now_ms,
        reason=certificates.CLONED,
    )


def _supersedes(presence: Presence, birth: int, online: bool) -> bool:
    if presence.birth != birth:
        return presence.birth > birth
    # A connection that has ended stays ended: the next one has a birth of its own.
    return online or not presence.online


def _keep_capabilities(
    session: Session, fleet: str, device: str, capabilities: dict[str, object]
) -> None:
    row = repository.device(session, fleet, device)
    if row is not None and row.capabilities != capabilities:
        row.capabilities = capabilities
        repository.save(session, row)


def _keep_refusals(
    session: Session, fleet: str, device: str, progress: Progress, now_ms: int
) -> None:
    added = False
    for refusal in progress.refusals:
        new = state_repository.add_refusal(
            session,
            fleet=fleet,
            device=device,
            topic=_clean(refusal.topic, 300),
            at_ms=refusal.at_ms,
            reason=refusal.reason.value,
            detail=_clean(refusal.detail, 300),
            received_ms=now_ms,
        )
        if new:
            # Two orders of one epoch: somebody signs beside this server. That is for a person.
            alarm = refusal.reason is Reason.EQUIVOCATION
            (log.error if alarm else log.warning)(
                "ALARM: two different orders of one epoch"
                if alarm
                else "device refused a control document",
                device=device,
                topic=refusal.topic,
                reason=refusal.reason.value,
                detail=_clean(refusal.detail, 300),
            )
        added = added or new
    if added:
        state_repository.forget_refusals(session, fleet, device, REFUSALS_KEPT)


def _of_enrolled(
    session: Session, inbound: Sequence[Inbound]
) -> tuple[list[Inbound], list[object]]:
    """The messages of devices that are enrolled, and their rows, to be held until they are stored.

    The other messages are counted in the log and dropped.
    """
    if not inbound:
        return [], []
    known = repository.known(session, inbound[0].fleet, {item.device for item in inbound})
    strangers = {item.device for item in inbound} - known
    if strangers:
        log.warning(
            "messages of unknown devices dropped",
            devices=sorted(strangers)[:10],
            count=len(strangers),
        )
    held = state_repository.load(session, inbound[0].fleet, known)
    return [item for item in inbound if item.device in known], held


def _bound(*numbers: int) -> None:
    if any(not -LARGEST <= number <= LARGEST for number in numbers):
        raise Refused(Reason.MALFORMED, "a number is out of range")


def _cleaned(item: ModelProgress) -> ModelProgress:
    return msgspec.structs.replace(
        item,
        rollout=_clean(item.rollout, ROLLOUT_CHARACTERS),
        target=_clean(item.target, 64),
        active=_clean(item.active, 64),
        standby=_clean(item.standby, 64),
        detail=_clean(item.detail, DETAIL_CHARACTERS),
    )


def _clean(text: str, most: int) -> str:
    # PostgreSQL stores no NUL, and a terminal should not obey a device.
    return "".join(c for c in text[:most] if c.isprintable())

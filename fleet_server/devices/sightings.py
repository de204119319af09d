"""What devices have seen, and devices that this server does not know.

Both matter when a server was restored from an older backup: it has to go on above what devices
hold, and some enrolled after the backup was made. Decides that what a device has seen never falls,
and how many strangers are remembered. What is made of it is decided by whoever leads the ceremony.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import structlog
from sqlmodel import Session

from fleet_contract.messages.presence import NOTHING_SEEN, Presence, Seen
from fleet_server.devices import cohorts, repository, sighting_repository
from fleet_server.devices.assignment import MinimumEpochs, directive_epochs, write_assignment
from fleet_server.devices.service import stored_cohorts
from fleet_server.dispatch.inbound import Inbound
from fleet_server.errors import NotFound
from fleet_server.trust.keyring import Keyring

STRANGERS = 10_000
"""Strangers remembered; those who come later are counted in the log only."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one device has seen, and when it said so (the server's time)."""

    device: str
    seen: Seen
    reported_ms: int


@dataclass(frozen=True, slots=True)
class Stranger:
    """A device that speaks and is not known; ``active`` maps a model to a manifest's digest."""

    name: str
    first_ms: int
    last_ms: int
    agent: str
    active: dict[str, str]


def note_seen(session: Session, inbound: Sequence[Inbound]) -> None:
    """Store what devices have seen, as their presence messages say it: of each the highest."""
    said: dict[str, tuple[Seen, int]] = {}
    for item in inbound:
        if isinstance(item.message, Presence) and item.message.seen != NOTHING_SEEN:
            before, _ = said.get(item.device, (NOTHING_SEEN, 0))
            said[item.device] = (_highest(before, item.message.seen), item.received_ms)
    if not said:
        return
    fleet = inbound[0].fleet
    held = sighting_repository.seen(session, fleet, said)
    for device, (seen, received_ms) in said.items():
        row = held.get(device)
        if row is None:
            values = msgspec.to_builtins(seen)
            sighting_repository.add_seen(
                session, fleet=fleet, device=device, reported_ms=received_ms, **values
            )
            continue
        for name, value in msgspec.to_builtins(_highest(_seen_of(row), seen)).items():
            setattr(row, name, value)
        row.reported_ms = received_ms
        session.add(row)


def note_strangers(session: Session, inbound: Sequence[Inbound]) -> set[str]:
    """Remember who said to be there without being known; returns whose names are remembered."""
    room: int | None = None
    remembered: set[str] = set()
    for item in inbound:
        presence = item.message
        if not isinstance(presence, Presence):
            continue
        row = sighting_repository.stranger(session, item.fleet, item.device)
        if row is None:
            if room is None:
                room = STRANGERS - sighting_repository.count_strangers(session, item.fleet)
            if room <= 0:
                log.warning("too many unknown devices", device=item.device)
                continue
            room -= 1
            row = sighting_repository.add_stranger(
                session,
                fleet=item.fleet,
                name=item.device,
                first_ms=item.received_ms,
                last_ms=item.received_ms,
                agent="",
                active={},
                capabilities={},
            )
        row.last_ms = item.received_ms
        row.agent = "".join(c for c in presence.agent if c.isprintable())
        row.active = {
            model[:64]: digest[:64]
            for model, digest in presence.active.items()
            if model.isprintable() and digest.isprintable()
        }
        if presence.capabilities is not None:
            row.capabilities = msgspec.to_builtins(presence.capabilities)
        session.add(row)
        remembered.add(item.device)
    return remembered


def sightings(session: Session, fleet: str, *, since_ms: int) -> Iterator[Sighting]:
    """Yield what devices have seen, of those that said so since a time."""
    for row in sighting_repository.reported_since(session, fleet, since_ms):
        yield Sighting(row.device, _seen_of(row), row.reported_ms)


def strangers(session: Session, fleet: str, *, count: int = STRANGERS) -> list[Stranger]:
    """Return who speaks and is not known, in order of their names."""
    return [
        Stranger(row.name, row.first_ms, row.last_ms, row.agent, row.active)
        for row in sighting_repository.strangers(session, fleet, count)
    ]


def adopt(
    session: Session,
    keyring: Keyring,
    name: str,
    *,
    now_ms: int,
    minimum_epochs: MinimumEpochs = directive_epochs,
) -> str:
    """Take a stranger back into the fleet, without labels; returns its cohort.

    Who it is, its certificate says: one of this fleet's, issued after the backup was made.

    Raises:
        NotFound: if nobody of that name was heard.
    """
    fleet = keyring.fleet
    row = sighting_repository.stranger(session, fleet, name)
    if row is None:
        raise NotFound("no_such_stranger", f"No unknown device {name[:80]!r} was heard.")
    repository.lock_fleet(session, fleet)
    cohort = cohorts.cohort_for({}, stored_cohorts(session, fleet))
    if repository.device(session, fleet, name) is None:
        repository.add_device(
            session,
            fleet=fleet,
            name=name,
            labels={},
            cohort=cohort,
            enrolled_ms=row.first_ms,
            capabilities=row.capabilities,
        )
    write_assignment(
        session,
        keyring,
        device=name,
        cohort=cohort,
        labels={},
        minimum_epochs=minimum_epochs(session, fleet, cohort),
        now_ms=now_ms,
    )
    sighting_repository.forget_stranger(session, row)
    return cohort


def _seen_of(row: sighting_repository.SeenRecord) -> Seen:
    return Seen(
        row.generation,
        row.epoch,
        row.root,
        row.timestamp,
        row.snapshot,
        row.targets,
        list(row.families),
        dict(row.release_floors),
    )


def _highest(one: Seen, other: Seen) -> Seen:
    newer = other if other.snapshot >= one.snapshot else one
    return Seen(
        max(one.generation, other.generation),
        max(one.epoch, other.epoch),
        max(one.root, other.root),
        max(one.timestamp, other.timestamp),
        max(one.snapshot, other.snapshot),
        max(one.targets, other.targets),
        newer.families,
        {
            model: max(one.release_floors.get(model, 0), other.release_floors.get(model, 0))
            for model in one.release_floors.keys() | other.release_floors.keys()
        },
    )

"""After a restore: what devices know above what this server knows, and how it goes on above them.

Decides what may be believed of what devices say (a device may lie, or be broken), and in which
order trust is raised: the keyset, the metadata that vouches for it, then every control document, in
one transaction. Killed in between, it is done again: it only ever raises. Run again for devices
that came late, it goes above what they have seen, too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlmodel import Session

from fleet_contract.messages.presence import NOTHING_SEEN, Seen
from fleet_contract.trust.keyset import KEYSET_PATH, Keyset, read_keyset
from fleet_server.database import Database
from fleet_server.devices import service as devices
from fleet_server.devices import sightings
from fleet_server.devices.sightings import Sighting, Stranger
from fleet_server.dispatch import service as dispatch
from fleet_server.errors import Conflict, NotFound
from fleet_server.releases import service as releases
from fleet_server.trust.catalogue.raising import raise_above
from fleet_server.trust.catalogue.repository import Catalogue
from fleet_server.trust.keyring import Keyring

GENERATIONS_AHEAD = 10_000
ROOTS_AHEAD = 1_000
VERSIONS_AHEAD = 1_000_000
EPOCH_AHEAD_MS = 30 * 24 * 3_600_000
"""More than this above what is held here is a lie or a broken clock, and would use up numbers."""
LISTED = 100
"""Names in one answer."""
PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Survey:
    """What devices have told since the restore.

    ``known`` and ``reported`` count devices of the database, ``silent`` names some that have not
    said anything yet. ``seen`` is the highest that was believed; ``implausible`` names devices
    that were not.
    """

    known: int
    reported: int
    silent: list[str]
    seen: Seen
    implausible: list[str]
    strangers: list[Stranger]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A device that runs a release which this server does not know."""

    device: str
    model: str
    digest: str


@dataclass(frozen=True, slots=True)
class Raised:
    """What was done: the keyset's generation, how many documents it signs, the roles that wait for
    somebody else's signature, and who was taken back.

    ``complete`` is False if the keyset waits, too: then devices obey this server only afterwards.
    """

    generation: int
    documents: int
    unsigned: list[str]
    adopted: list[str]
    complete: bool


def survey(session: Session, fleet: str, *, held: Seen, since_ms: int, now_ms: int) -> Survey:
    """Return what devices have said since a time, and who has not spoken.

    Args:
        session: reads.
        fleet: whose devices.
        held: what this server itself holds, against which lies are told.
        since_ms: when it was restored, by its own clock.
        now_ms: the present.
    """
    seen, spoken, implausible = NOTHING_SEEN, set[str](), list[str]()
    for sighting in sightings.sightings(session, fleet, since_ms=since_ms):
        spoken.add(sighting.device)
        if _plausible(sighting.seen, held, now_ms):
            seen = _above(seen, sighting)
        else:
            implausible.append(sighting.device)
    known, silent = 0, list[str]()
    for name in _names(session, fleet):
        known += 1
        if name not in spoken and len(silent) < LISTED:
            silent.append(name)
    strangers = sightings.strangers(session, fleet)
    reported = len(spoken - {stranger.name for stranger in strangers})
    return Survey(known, reported, silent, seen, implausible[:LISTED], strangers)


def held_by(catalogue: Catalogue, keyring: Keyring) -> Seen:
    """Return what this server holds, in the terms in which devices tell what they have seen."""
    versions = catalogue.versions()
    root, timestamp, snapshot = (versions.pop(role) for role in ("root", "timestamp", "snapshot"))
    return Seen(
        generation=keyring.generation,
        epoch=keyring.keyset.epoch_floor,
        release_floors=keyring.keyset.release_floors,
        root=root,
        timestamp=timestamp,
        snapshot=snapshot,
        targets=max(versions.values()),
    )


def raise_trust(
    database: Database,
    catalogue: Catalogue,
    keyring: Keyring,
    seen: Seen,
    *,
    accept_floors: bool,
    strangers: Iterable[str],
    restored_ms: int | None,
    now_ms: int,
) -> Raised:
    """Go on above what devices have seen. The caller records it and wakes the publisher.

    Args:
        database: of this server.
        catalogue: its repository of what exists.
        keyring: its directors.
        seen: the highest that devices hold.
        accept_floors: whether somebody looked at the release floors that devices hold.
        strangers: unknown devices to take back.
        restored_ms: when this server was restored; None if it leads its fleet again, which is
            then always raised once more.
        now_ms: the present.

    Raises:
        Conflict: if devices hold a newer root: no other can follow it; or release floors that
            nobody has looked at.
        OSError: if something cannot be written.
    """
    root = catalogue.versions()["root"]
    if seen.root > root:
        raise Conflict(
            "root_behind",
            f"Devices trust root {seen.root}; this server holds root {root}.",
            f"Bring roots {root + 1} to {seen.root}, one after the other, by: edgefleet trust "
            "publish-root FILE. Whoever signed them has them beside the keys. If one is not to be "
            "found: rotate (edgefleet trust rotate timestamp, and sign) until this server's root "
            f"is above {seen.root}.",
        )
    above = {
        model: floor
        for model, floor in seen.release_floors.items()
        if floor > keyring.keyset.release_floors.get(model, 0)
    }
    if above and not accept_floors:
        # Other numbers are only raised. This one takes releases away, on the word of a device.
        named = ", ".join(f"{model} below {floor}" for model, floor in above.items())[:300]
        raise Conflict(
            "release_floors",
            f"Devices hold that releases were revoked, by their counters: {named}. This server "
            "does not know of it.",
            "If that is right, go on with --accept-floors: those releases can then be used no "
            "more. If not, look at the devices that say so.",
        )
    if restored_ms is not None and _was_raised(catalogue, keyring, seen, restored_ms):
        # Holders of targets have signed what the first run proposed: that is all there was to do.
        unsigned, complete = catalogue.waiting(), True
    else:
        unsigned, complete = _raise(catalogue, keyring, seen, above, now_ms)
    with database.transaction() as session:
        adopted = [
            name for name in strangers if sightings.adopt(session, keyring, name, now_ms=now_ms)
        ]
        documents = dispatch.count_control(session, keyring.fleet)
    return Raised(keyring.generation, documents, unsigned, adopted, complete)


def _raise(
    catalogue: Catalogue, keyring: Keyring, seen: Seen, above: Mapping[str, int], now_ms: int
) -> tuple[list[str], bool]:
    """Return the roles that wait for signatures, and whether the keyset is committed."""
    coming = catalogue.coming_document(KEYSET_PATH) or keyring.keyset_bytes
    if not _is_above(read_keyset(coming, fleet=keyring.fleet, held=None), keyring, seen, above):
        coming = keyring.propose_raised(
            coming,
            least=seen.generation + 1,
            epoch_floor=max(seen.epoch, now_ms),
            release_floors=above,
        )
    versions = {role: getattr(seen, role) for role in ("timestamp", "snapshot", "targets")}
    unsigned = raise_above(catalogue, versions, seen.families)
    # What follows it adopts the keyset, and signs every control document anew.
    return unsigned, catalogue.publish_document(KEYSET_PATH, coming, why="after a restore")


def _was_raised(catalogue: Catalogue, keyring: Keyring, seen: Seen, restored_ms: int) -> bool:
    """Say whether what is committed was raised after the restore, and far enough.

    A device may have fetched it by now: then it has seen just that.
    """
    keyset, held = keyring.keyset, held_by(catalogue, keyring)
    return (
        catalogue.document(KEYSET_PATH) == keyring.keyset_bytes
        # A floor of after the restore voids all that was signed in the lost time.
        and keyset.epoch_floor >= max(restored_ms, seen.epoch)
        and keyset.generation >= seen.generation
        and all(keyset.release_floors.get(name, 0) >= n for name, n in seen.release_floors.items())
        and held.timestamp >= seen.timestamp
        and held.snapshot >= seen.snapshot
        and held.targets >= seen.targets
    )


def _is_above(
    coming: Keyset, keyring: Keyring, seen: Seen, release_floors: Mapping[str, int]
) -> bool:
    """Say whether a keyset that waits for signatures was raised far enough already."""
    return (
        coming.generation > max(keyring.generation, seen.generation)
        and coming.epoch_floor >= seen.epoch
        and all(coming.release_floors.get(model, 0) >= n for model, n in release_floors.items())
    )


def running_elsewhere(session: Session, fleet: str) -> list[Elsewhere]:
    """Return devices whose releases were staged after the backup; at most a hundred."""
    known: dict[str, bool] = {"": True}
    found: list[Elsewhere] = []
    after = ""
    while page := devices.devices(session, fleet, after=after, count=PAGE):
        after = page[-1].name
        for view in page:
            for model, digest in view.active.items():
                if not _is_known(session, digest, known):
                    found.append(Elsewhere(view.name, model, digest))
        if len(found) >= LISTED:
            break
    return found[:LISTED]


def _is_known(session: Session, digest: str, known: dict[str, bool]) -> bool:
    if digest not in known:
        try:
            releases.release_by_digest(session, digest)
            known[digest] = True
        except NotFound:
            known[digest] = False
    return known[digest]


def _names(session: Session, fleet: str) -> Iterable[str]:
    after = ""
    while page := devices.names(session, fleet, after=after, count=PAGE):
        yield from page
        after = page[-1]


def _plausible(seen: Seen, held: Seen, now_ms: int) -> bool:
    limits: Mapping[str, int] = {
        "generation": held.generation + GENERATIONS_AHEAD,
        "epoch": now_ms + EPOCH_AHEAD_MS,
        "root": held.root + ROOTS_AHEAD,
        "timestamp": held.timestamp + VERSIONS_AHEAD,
        "snapshot": held.snapshot + VERSIONS_AHEAD,
        "targets": held.targets + VERSIONS_AHEAD,
    }
    return all(getattr(seen, name) <= most for name, most in limits.items())


def _above(seen: Seen, sighting: Sighting) -> Seen:
    other = sighting.seen
    return Seen(
        max(seen.generation, other.generation),
        max(seen.epoch, other.epoch),
        max(seen.root, other.root),
        max(seen.timestamp, other.timestamp),
        max(seen.snapshot, other.snapshot),
        max(seen.targets, other.targets),
        sorted({*seen.families, *other.families}),
        {
            model: max(seen.release_floors.get(model, 0), other.release_floors.get(model, 0))
            for model in sorted(seen.release_floors.keys() | other.release_floors.keys())
        },
    )

"""The devices as the rest of the server sees them, and how they move between cohorts.

Decides that labels and cohorts together say where a device is, and that a device's assignment is
rewritten in the transaction that moves it. How it joined is in ``enrolment``, what it says in
``recording``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlmodel import Session

from fleet_contract import codec
from fleet_contract.manifest import Capabilities
from fleet_contract.messages.progress import ModelProgress
from fleet_server.devices import cohorts, repository, sighting_repository, state_repository
from fleet_server.devices.assignment import MinimumEpochs, directive_epochs, write_assignment
from fleet_server.devices.cohorts import Cohort, Selector
from fleet_server.errors import Conflict, NotFound
from fleet_server.trust.keyring import Keyring

_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device, what it offers and the newest that it said.

    ``enrolled_ms`` and ``last_seen_ms`` (None: never) are the server's times. ``session`` is the
    boot session it spoke in last, ``active`` what its birth message said (model → manifest
    digest), ``progress`` its newest progress by model. ``alarm`` says what an operator has to
    look at, if anything.
    """

    name: str
    cohort: str
    labels: dict[str, str]
    capabilities: Capabilities
    enrolled_ms: int
    online: bool
    last_seen_ms: int | None
    session: str
    agent: str
    active: dict[str, str]
    progress: dict[str, ModelProgress]
    retired_ms: int | None
    alarm: str | None


@dataclass(frozen=True, slots=True)
class CohortView:
    """A cohort and how many devices are in it."""

    name: str
    selector: Selector
    priority: int
    devices: int


def members(session: Session, fleet: str, cohort: str) -> list[DeviceView]:
    """Return the devices of a cohort in order of their names."""
    return _views(session, fleet, repository.devices(session, fleet, cohort))


def devices(
    session: Session, fleet: str, *, cohort: str | None = None, after: str = "", count: int = 100
) -> list[DeviceView]:
    """Return up to ``count`` devices whose names come after ``after``."""
    rows = repository.device_page(session, fleet, cohort=cohort, after=after, count=count)
    return _views(session, fleet, rows, names=[row.name for row in rows])


def names(session: Session, fleet: str, *, after: str, count: int) -> list[str]:
    """Return up to ``count`` names of devices that come after ``after``."""
    rows = repository.device_page(session, fleet, cohort=None, after=after, count=count)
    return [row.name for row in rows]


def device(session: Session, fleet: str, name: str) -> DeviceView:
    """Return one device.

    Raises:
        NotFound: if there is none of that name.
    """
    return _views(session, fleet, [stored_device(session, fleet, name)], names=[name])[0]


def running_releases(session: Session, fleet: str) -> dict[str, int]:
    """Return on how many devices each release is active, by the digest of its manifest."""
    return state_repository.running(session, fleet)


def held_releases(session: Session, fleet: str) -> set[tuple[str, str]]:
    """Return (model, digest of the manifest) of all that any device has, goes to or returns to.

    Retired devices count, and so do strangers: they may run it still.
    """
    found: set[tuple[str, str]] = set()
    for row in state_repository.presence(session, fleet).values():
        found.update(row.active.items())
    for models in state_repository.progress(session, fleet).values():
        for item in models.values():
            found.update((item.model, each) for each in (item.active, item.standby, item.target))
    after = ""
    while page := sighting_repository.strangers(session, fleet, _PAGE, after):
        for stranger in page:
            found.update(stranger.active.items())
        after = page[-1].name
    return {(model, digest) for model, digest in found if digest}


def relabel(
    session: Session,
    keyring: Keyring,
    *,
    name: str,
    labels: Mapping[str, str],
    now_ms: int,
    minimum_epochs: MinimumEpochs = directive_epochs,
) -> DeviceView:
    """Replace a device's labels, move it to its cohort, and write its assignment anew.

    Raises:
        NotFound: if there is no such device.
        Invalid: if a label is not allowed.
    """
    fleet = keyring.fleet
    checked = cohorts.check_labels(labels)
    repository.lock_fleet(session, fleet)
    row = stored_device(session, fleet, name)
    if row.labels != checked:
        row.labels = checked
        row.cohort = cohorts.cohort_for(checked, stored_cohorts(session, fleet))
        repository.save(session, row)
        _assign(session, keyring, row, minimum_epochs(session, fleet, row.cohort), now_ms)
    return device(session, fleet, name)


def create_cohort(
    session: Session,
    keyring: Keyring,
    *,
    name: str,
    selector: Selector,
    priority: int,
    now_ms: int,
    minimum_epochs: MinimumEpochs = directive_epochs,
) -> list[str]:
    """Create a cohort and move every device that it takes.

    Returns:
        The names of the devices that moved.

    Raises:
        Invalid: if name, selector or priority are not allowed.
        Conflict: if there is a cohort of that name.
    """
    fleet = keyring.fleet
    cohort = cohorts.check_cohort(name, selector, priority)
    repository.lock_fleet(session, fleet)
    known = stored_cohorts(session, fleet)
    if any(other.name == name for other in known):
        raise Conflict("cohort_exists", f"There is a cohort named {name}.", "Choose another name.")
    repository.add_cohort(
        session, fleet=fleet, name=name, selector=dict(cohort.selector), priority=priority
    )
    known.append(cohort)
    moved = []
    epochs = minimum_epochs(session, fleet, name)
    for row in repository.devices(session, fleet):
        # A new cohort can only take devices from others, never between others.
        if cohorts.cohort_for(row.labels, known) == name:
            row.cohort = name
            repository.save(session, row)
            _assign(session, keyring, row, epochs, now_ms)
            moved.append(row.name)
    return moved


def list_cohorts(session: Session, fleet: str) -> list[CohortView]:
    """Return the cohorts, the one that is asked first first, and how many devices each has."""
    counts = repository.counts(session, fleet)
    return [
        CohortView(cohort.name, cohort.selector, cohort.priority, counts.get(cohort.name, 0))
        for cohort in stored_cohorts(session, fleet)
    ]


def check_cohort_exists(session: Session, fleet: str, name: str) -> None:
    """Return if there is such a cohort.

    Raises:
        NotFound: otherwise.
    """
    known = [cohort.name for cohort in stored_cohorts(session, fleet)]
    if name not in known:
        raise NotFound(
            "no_such_cohort",
            f"There is no cohort named {name[:80]!r}.",
            f"There are: {', '.join(known[:20])}. Create one by: edgefleet cohort create.",
        )


def ensure_default_cohort(session: Session, fleet: str) -> None:
    """Create the cohort that takes whoever no other takes, unless it is there."""
    if not any(cohort.name == cohorts.DEFAULT for cohort in stored_cohorts(session, fleet)):
        repository.add_cohort(session, fleet=fleet, name=cohorts.DEFAULT, selector={}, priority=0)


def stored_device(session: Session, fleet: str, name: str) -> Any:
    """Return a device's row, to be changed.

    Raises:
        NotFound: if there is none of that name.
    """
    row = repository.device(session, fleet, name)
    if row is None:
        raise NotFound(
            "no_such_device",
            f"There is no device named {name[:80]!r}.",
            "List them by: edgefleet device list.",
        )
    return row


def stored_cohorts(session: Session, fleet: str) -> list[Cohort]:
    """Return the cohorts of a fleet, the one that is asked first first."""
    return [
        Cohort(row.name, row.selector, row.priority) for row in repository.cohorts(session, fleet)
    ]


def _assign(
    session: Session, keyring: Keyring, row: Any, minimum_epochs: dict[str, int], now_ms: int
) -> None:
    write_assignment(
        session,
        keyring,
        device=row.name,
        cohort=row.cohort,
        labels=row.labels,
        minimum_epochs=minimum_epochs,
        now_ms=now_ms,
    )


def _views(
    session: Session, fleet: str, rows: list[Any], names: list[str] | None = None
) -> list[DeviceView]:
    """The rows with what the devices said; ``names`` limits what is read, None reads it all."""
    presence = state_repository.presence(session, fleet, names)
    progress = state_repository.progress(session, fleet, names)
    views = []
    for row in rows:
        seen = presence.get(row.name)
        views.append(
            DeviceView(
                name=row.name,
                cohort=row.cohort,
                labels=row.labels,
                capabilities=msgspec.convert(row.capabilities, codec.prepared(Capabilities)),
                enrolled_ms=row.enrolled_ms,
                # The last word of a retired device is not heard any more.
                online=seen is not None and seen.online and row.retired_ms is None,
                last_seen_ms=None if seen is None else seen.last_seen_ms,
                session="" if seen is None else seen.session,
                agent="" if seen is None else seen.agent,
                active={} if seen is None else seen.active,
                progress=progress.get(row.name, {}),
                retired_ms=row.retired_ms,
                alarm=row.alarm,
            )
        )
    return views

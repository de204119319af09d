"""How a device leaves: retired for good, or replaced under its name; and how an alarm is cleared.

Decides that either makes every certificate of the device worthless in the same transaction. What a
device did stays on record. Ending its connections is the caller's matter, after the commit.
"""

from sqlmodel import Session

from fleet_server.devices import certificate_repository, repository
from fleet_server.devices.service import stored_device
from fleet_server.errors import Conflict


def retire(session: Session, fleet: str, name: str, *, now_ms: int) -> int:
    """Take a device out of the fleet.

    Returns:
        How many certificates were revoked.

    Raises:
        NotFound: if there is no such device.
        Conflict: if it was retired before.
    """
    row = stored_device(session, fleet, name)
    if row.retired_ms is not None:
        raise Conflict(
            "device_retired",
            f"{name} was retired before.",
            f"To have it back: edgefleet device replace {name}.",
        )
    row.retired_ms = now_ms
    repository.save(session, row)
    return certificate_repository.revoke_all(session, fleet, name, now_ms)


def revoke(session: Session, fleet: str, name: str, *, now_ms: int) -> int:
    """Make every certificate of a device worthless, so that another can take its place.

    Returns:
        How many certificates were revoked.

    Raises:
        NotFound: if there is no such device.
    """
    stored_device(session, fleet, name)
    return certificate_repository.revoke_all(session, fleet, name, now_ms)


def clear_alarm(session: Session, fleet: str, name: str) -> str:
    """Take the mark from a device, and return what it was.

    Raises:
        NotFound: if there is no such device.
        Conflict: if it has none.
    """
    row = stored_device(session, fleet, name)
    alarm = row.alarm
    if alarm is None:
        raise Conflict("no_alarm", f"There is no alarm about {name}.", "Nothing is to be done.")
    row.alarm = row.alarm_ms = None
    repository.save(session, row)
    return str(alarm)

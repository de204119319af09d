"""The emergency stop of a fleet: written, lifted, and there from the start.

The stop's row exists from the first start on, lifted: a device makes no forward move until it
holds one, so that silence of the broker is never taken for permission.
"""

from dataclasses import dataclass

from sqlmodel import Session

from fleet_contract import topics
from fleet_contract.trust.directive import Stop
from fleet_server.devices import repository
from fleet_server.dispatch import service as dispatch
from fleet_server.errors import Invalid
from fleet_server.trust.keyring import Keyring

REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class StopView:
    """Whether the fleet is stopped, why, and since when (the server's time)."""

    stopped: bool
    reason: str
    epoch: int
    changed_ms: int


def stop_of(session: Session, fleet: str) -> StopView:
    """Return the fleet's stop; before the server's first start it counts as stopped."""
    row = repository.stop(session, fleet)
    if row is None:
        return StopView(True, "the server has not started yet", 0, 0)
    return StopView(row.stopped, row.reason, row.epoch, row.changed_ms)


def set_stop(
    session: Session, keyring: Keyring, *, stopped: bool, reason: str, now_ms: int
) -> StopView:
    """Stop the fleet or lift the stop: one signed message, whatever the size of the fleet.

    Raises:
        Invalid: if the fleet is to be stopped without a reason, or the reason is too long.
    """
    text = " ".join(reason.split())
    if stopped and not text:
        raise Invalid("no_reason", "Say why: those who look later will want to know.")
    if len(text) > REASON_CHARACTERS:
        raise Invalid("reason_too_long", f"A reason has at most {REASON_CHARACTERS} characters.")
    fleet = keyring.fleet
    epoch = dispatch.next_epoch(session, fleet, now_ms)
    payload = keyring.sign_stop(
        Stop(
            fleet=fleet,
            generation=keyring.generation,
            epoch=epoch,
            issued_ms=now_ms,
            stopped=stopped,
            reason=text,
        )
    )
    dispatch.put_control(
        session,
        fleet=fleet,
        topic=topics.stop(fleet),
        epoch=epoch,
        payload=payload,
        now_ms=now_ms,
    )
    repository.put_stop(
        session, fleet=fleet, stopped=stopped, reason=text, epoch=epoch, changed_ms=now_ms
    )
    return StopView(stopped, text, epoch, now_ms)


def ensure_stop(session: Session, keyring: Keyring, *, now_ms: int) -> None:
    """Write a lifted stop unless the fleet has one."""
    if repository.stop(session, keyring.fleet) is None:
        set_stop(session, keyring, stopped=False, reason="", now_ms=now_ms)

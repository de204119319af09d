"""The signed assignment of a device: written whenever what it says changes.

Decides what it says: cohort, labels, and the least epoch of each model of the cohort, so that a
newcomer or a mover cannot be fed an old directive. Pins and blocks are empty in this version.
"""

from collections.abc import Callable

from sqlmodel import Session

from fleet_contract import topics
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust.directive import Assignment
from fleet_server.dispatch import service as dispatch
from fleet_server.trust.keyring import Keyring

MinimumEpochs = Callable[[Session, str, str], dict[str, int]]
"""``minimum_epochs(session, fleet, cohort)``: model → epoch of its newest directive."""


def directive_epochs(session: Session, fleet: str, cohort: str) -> dict[str, int]:
    """Return model → epoch of the directive that the cohort's devices must be at least at."""
    prefix = topics.directives(fleet, cohort).removesuffix("+")
    return {
        topic.removeprefix(prefix): epoch
        for topic, epoch in dispatch.control_epochs(session, fleet, prefix).items()
    }


def write_assignment(
    session: Session,
    keyring: Keyring,
    *,
    device: str,
    cohort: str,
    labels: dict[str, str],
    minimum_epochs: dict[str, int],
    now_ms: int,
) -> int:
    """Sign a device's assignment and make it the desired retained message.

    Returns:
        Its epoch.
    """
    fleet = keyring.fleet
    epoch = dispatch.next_epoch(session, fleet, now_ms)
    payload = keyring.sign_assignment(
        Assignment(
            fleet=fleet,
            device=device,
            generation=keyring.generation,
            epoch=epoch,
            issued_ms=now_ms,
            cohort=cohort,
            labels=labels,
            pins={},
            blocks={},
            minimum_epochs=minimum_epochs,
        )
    )
    dispatch.put_control(
        session,
        fleet=fleet,
        topic=topics.device(fleet, device, DeviceChannel.ASSIGNMENT),
        epoch=epoch,
        payload=payload,
        now_ms=now_ms,
    )
    return epoch

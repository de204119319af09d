"""Desired state of the broker: the fleet's epoch, and one row for each retained control message.

Decides that epochs only grow and that a message is never replaced by an older one. Rows are
written in the transaction of the decision that they carry; the caller wakes the publisher after
the commit. What the bytes say is the business of the domain that signed them.
"""

from dataclasses import dataclass

from sqlmodel import Session

from fleet_contract import topics
from fleet_server.dispatch import repository
from fleet_server.errors import Conflict


@dataclass(frozen=True, slots=True)
class ControlMessage:
    """A retained message that the broker must hold: topic, epoch and the signed bytes."""

    topic: str
    epoch: int
    payload: bytes


def next_epoch(session: Session, fleet: str, now_ms: int) -> int:
    """Return the next epoch of a fleet, max(last + 1, now_ms).

    The fleet's row stays locked until the transaction ends, so epochs are committed in order.
    """
    return repository.advance_epoch(session, fleet, now_ms)


def put_control(
    session: Session, *, fleet: str, topic: str, epoch: int, payload: bytes, now_ms: int
) -> None:
    """Make ``payload`` the desired retained message of ``topic``.

    Raises:
        Conflict: if the row has a newer epoch, or another payload of the same epoch.
    """
    written = repository.put_control(
        session, fleet=fleet, topic=topic, epoch=epoch, payload=payload, now_ms=now_ms
    )
    if not written:
        raise Conflict(
            "control_message_older",
            f"there is a newer control message than epoch {epoch} on {topic}",
            "take a new epoch in the transaction that makes the decision",
        )


def put_root(session: Session, *, fleet: str, root: bytes, now_ms: int) -> bool:
    """Make these bytes what the broker holds as the newest root of trust.

    It carries its own signatures and version; the epoch only orders the rows.

    Returns:
        Whether that was news.
    """
    topic = topics.root(fleet)
    if repository.payload_of(session, topic) == root:
        return False
    epoch = next_epoch(session, fleet, now_ms)
    put_control(session, fleet=fleet, topic=topic, epoch=epoch, payload=root, now_ms=now_ms)
    return True


def control_messages(
    session: Session, fleet: str, *, after_epoch: int | None = None
) -> list[ControlMessage]:
    """Return what the broker must hold for a fleet, all of it or only what is above an epoch."""
    return [
        ControlMessage(topic, epoch, payload)
        for topic, epoch, payload in repository.control_messages(session, fleet, after_epoch)
    ]


def count_control(session: Session, fleet: str) -> int:
    """Return how many control messages the broker has to hold for a fleet."""
    return repository.count_control(session, fleet)


def control_epochs(session: Session, fleet: str, prefix: str) -> dict[str, int]:
    """Return topic → epoch of what the broker must hold below a prefix, without the payloads."""
    return repository.control_epochs(session, fleet, prefix)

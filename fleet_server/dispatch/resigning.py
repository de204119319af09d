"""Signs everything that the broker must hold anew: after another director, generation or restore.

Decides that a document keeps what it says and takes the keyset's present generation and a new
epoch, the same for all, so that a device that accepted any older one accepts it. Directives live
as long again as they were meant to. What else the domains remember of their decisions stays as it
was. The root is not among the documents: it carries its own signatures.
"""

import base64
import binascii
from collections.abc import Iterator
from typing import TypeVar

import msgspec
from sqlmodel import Session

from fleet_contract import codec, limits, topics
from fleet_contract.errors import Refused
from fleet_contract.trust.directive import (
    ASSIGNMENT_TYPE,
    DIRECTIVE_TYPE,
    STOP_TYPE,
    Assignment,
    Directive,
    Stop,
)
from fleet_contract.trust.envelope import Envelope
from fleet_server.dispatch import repository
from fleet_server.dispatch import service as dispatch
from fleet_server.errors import Conflict
from fleet_server.trust.keyring import Keyring

PAGE = 1_000
"""Rows in memory at a time: a large fleet has an assignment for each device."""

T = TypeVar("T")


class _Dated(msgspec.Struct, frozen=True):
    generation: int


def resign_all(session: Session, keyring: Keyring, *, now_ms: int, least_epoch: int = 0) -> int:
    """Sign every control message of the fleet anew, in the caller's transaction.

    The caller wakes the publisher after the commit.

    Args:
        session: the transaction.
        keyring: whose director and generation the documents get.
        now_ms: the time of issue, milliseconds since 1970.
        least_epoch: the new epoch is at least this, besides above all that were given out.

    Returns:
        How many documents there are.

    Raises:
        Conflict: if what is stored under a topic is no document of its kind.
    """
    fleet = keyring.fleet
    epoch = dispatch.next_epoch(session, fleet, max(now_ms, least_epoch))
    count = 0
    for page in _pages(session, fleet):
        renewed = {
            topic: _renewed(keyring, topic, payload, epoch, now_ms)
            for topic, payload in page.items()
        }
        repository.replace_control(session, renewed, epoch=epoch, now_ms=now_ms)
        count += len(renewed)
    return count


def needs_resigning(session: Session, keyring: Keyring) -> bool:
    """Say whether any control message is of another generation, or signed by nobody believed.

    Raises:
        Conflict: if what is stored under a topic is no document.
    """
    believed = keyring.keyset.director_keys()
    documents = (item for page in _pages(session, keyring.fleet) for item in page.items())
    for topic, data in documents:
        envelope = _read(topic, data, Envelope)
        generation = _read(topic, _payload(topic, envelope), _Dated).generation
        signed = any(signature.keyid in believed for signature in envelope.signatures)
        if not signed or generation != keyring.generation:
            return True
    return False


def _renewed(keyring: Keyring, topic: str, data: bytes, epoch: int, now_ms: int) -> bytes:
    envelope = _read(topic, data, Envelope)
    payload = _payload(topic, envelope)
    stamp = {"generation": keyring.generation, "epoch": epoch, "issued_ms": now_ms}
    if envelope.payload_type == DIRECTIVE_TYPE:
        directive = _read(topic, payload, Directive)
        expires_ms = now_ms + directive.expires_ms - directive.issued_ms
        return keyring.sign_directive(
            msgspec.structs.replace(directive, expires_ms=expires_ms, **stamp)
        )
    if envelope.payload_type == ASSIGNMENT_TYPE:
        assignment = _read(topic, payload, Assignment)
        # The directives have this very epoch now: nothing older may be fed to the device.
        minimum = dict.fromkeys(assignment.minimum_epochs, epoch)
        return keyring.sign_assignment(
            msgspec.structs.replace(assignment, minimum_epochs=minimum, **stamp)
        )
    if envelope.payload_type == STOP_TYPE:
        return keyring.sign_stop(msgspec.structs.replace(_read(topic, payload, Stop), **stamp))
    raise _unreadable(topic, f"of type {envelope.payload_type[:80]}")


def _pages(session: Session, fleet: str) -> Iterator[dict[str, bytes]]:
    """Yield topic → envelope of all that a director signs, a page at a time."""
    root = topics.root(fleet)
    after = ""
    while page := repository.control_page(session, fleet, after, PAGE):
        yield {topic: payload for topic, payload in page if topic != root}
        after = page[-1][0]


def _payload(topic: str, envelope: Envelope) -> bytes:
    try:
        return base64.b64decode(envelope.payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _unreadable(topic, "not base64") from error


def _read(topic: str, data: bytes, kind: type[T]) -> T:
    try:
        return codec.decode_json(data, kind, limit_bytes=limits.ENVELOPE_BYTES)
    except Refused as error:
        raise _unreadable(topic, error.detail) from error


def _unreadable(topic: str, why: str) -> Conflict:
    return Conflict(
        "control_message_unreadable",
        f"What is stored for {topic} cannot be signed anew: {why}",
        "Restore the database from a backup: this row was not written by the server.",
    )

"""The ordered checks on signed control documents.

The order is part of the contract: size (1), key id (2), signature (3), audience (4), generation
(5), epoch (6), expiry (7). The device then persists the acceptance (8) and only then acts (9);
those two are the agent core's. Checks 1 to 3 are in :mod:`fleet_contract.trust.envelope`. An
expired directive gates new transitions only: nothing here is checked again at boot.
"""

import hashlib
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from fleet_contract import codec, limits
from fleet_contract.counts import Count
from fleet_contract.errors import Reason, Refused
from fleet_contract.trust import envelope
from fleet_contract.trust.directive import (
    ASSIGNMENT_TYPE,
    DIRECTIVE_TYPE,
    STOP_TYPE,
    Assignment,
    Directive,
    Stop,
    check_arms,
)
from fleet_contract.trust.keyset import Keyset

Document_co = TypeVar("Document_co", covariant=True)


class Acceptance(msgspec.Struct, frozen=True):
    """The highest document accepted on one topic; persisted before anything is done about it.

    ``digest`` is the SHA-256 of the signed payload.
    """

    generation: Count
    epoch: Count
    digest: str


@dataclass(frozen=True, slots=True)
class Audience:
    """For whom this device may accept a directive."""

    fleet: str
    cohort: str
    model: str


@dataclass(frozen=True, slots=True)
class Accepted(Generic[Document_co]):
    """A document that passed every check, and what to persist about it.

    ``repeated`` says that this very document was accepted before: there is nothing new in it.
    """

    document: Document_co
    acceptance: Acceptance
    repeated: bool


def check_directive(
    data: bytes,
    *,
    keyset: Keyset,
    audience: Audience,
    held: Acceptance | None,
    minimum_epoch: int,
    now_ms: int,
) -> Accepted[Directive]:
    """Check a directive as received from the broker.

    Args:
        data: the envelope.
        keyset: the keys and the generation believed.
        audience: the fleet, cohort and model of this device and topic.
        held: the acceptance persisted for this cohort and model.
        minimum_epoch: from the device's assignment.
        now_ms: the device's trusted time, milliseconds since 1970.

    Raises:
        Refused: with the reason of the first check that failed.
    """
    payload = unseal(data, DIRECTIVE_TYPE, keyset)
    directive = codec.decode_json(payload, Directive, limit_bytes=limits.ENVELOPE_BYTES)
    check_arms(directive)
    # 4. Audience.
    got = Audience(directive.fleet, directive.cohort, directive.model)
    if got != audience:
        raise Refused(Reason.WRONG_AUDIENCE, f"for {got}, not {audience}")
    check_generation(directive.generation, keyset)
    acceptance = _check_epoch(
        payload,
        directive.generation,
        directive.epoch,
        held,
        max(minimum_epoch, keyset.epoch_floor),
    )
    repeated = acceptance == held
    # 7. Expiry. What was accepted in time stays accepted.
    if not repeated and now_ms >= directive.expires_ms:
        raise Refused(Reason.EXPIRED, f"expired {now_ms - directive.expires_ms} ms ago")
    return Accepted(directive, acceptance, repeated)


def check_assignment(
    data: bytes, *, keyset: Keyset, fleet: str, device: str, held: Acceptance | None
) -> Accepted[Assignment]:
    """Check this device's assignment; the same checks in the same order, but it never expires.

    Raises:
        Refused: with the reason of the first check that failed.
    """
    payload = unseal(data, ASSIGNMENT_TYPE, keyset)
    assignment = codec.decode_json(payload, Assignment, limit_bytes=limits.ENVELOPE_BYTES)
    # 4. Audience.
    if (assignment.fleet, assignment.device) != (fleet, device):
        raise Refused(
            Reason.WRONG_AUDIENCE, f"for {assignment.fleet}/{assignment.device}, not {device}"
        )
    check_generation(assignment.generation, keyset)
    acceptance = _check_epoch(
        payload, assignment.generation, assignment.epoch, held, keyset.epoch_floor
    )
    return Accepted(assignment, acceptance, acceptance == held)


def check_stop(
    data: bytes, *, keyset: Keyset, fleet: str, held: Acceptance | None
) -> Accepted[Stop]:
    """Check the fleet's stop; the same checks in the same order, but it never expires.

    Raises:
        Refused: with the reason of the first check that failed.
    """
    payload = unseal(data, STOP_TYPE, keyset)
    stop = codec.decode_json(payload, Stop, limit_bytes=limits.ENVELOPE_BYTES)
    # 4. Audience.
    if stop.fleet != fleet:
        raise Refused(Reason.WRONG_AUDIENCE, f"for fleet {stop.fleet}, not {fleet}")
    check_generation(stop.generation, keyset)
    acceptance = _check_epoch(payload, stop.generation, stop.epoch, held, keyset.epoch_floor)
    return Accepted(stop, acceptance, acceptance == held)


def unseal(data: bytes, payload_type: str, keyset: Keyset) -> bytes:
    """Return the payload that a director of the keyset signed; checks 1 to 3.

    Raises:
        Refused: ``too_large``, ``malformed``, ``unknown_key`` or ``bad_signature``.
    """
    # 1. Size.  2. Key id.  3. Signature.
    return envelope.unseal(
        data, payload_type, keyset.director_keys(), limit_bytes=limits.ENVELOPE_BYTES
    )


def check_generation(generation: int, keyset: Keyset) -> None:
    """Check that a document is of the generation that the keyset is at; check 5.

    Raises:
        Refused: ``old_generation`` or ``unconfirmed_generation``.
    """
    # 5. Generation: older ones are void, a newer one is believed once the keyset confirms it.
    if generation < keyset.generation:
        raise Refused(
            Reason.OLD_GENERATION, f"generation {generation}, the keyset is at {keyset.generation}"
        )
    if generation > keyset.generation:
        raise Refused(
            Reason.UNCONFIRMED_GENERATION,
            f"generation {generation}, the keyset is at {keyset.generation}",
        )


def _check_epoch(
    payload: bytes, generation: int, epoch: int, held: Acceptance | None, floor: int
) -> Acceptance:
    # 6. Epoch: never back, and the same epoch never with other content.
    acceptance = Acceptance(generation, epoch, hashlib.sha256(payload).hexdigest())
    if held is not None and generation == held.generation:
        if epoch == held.epoch and acceptance.digest != held.digest:
            raise Refused(Reason.EQUIVOCATION, f"two different documents of epoch {epoch}")
        floor = max(floor, held.epoch)
    if held is not None and generation < held.generation:
        raise Refused(
            Reason.OLD_GENERATION, f"generation {generation} < {held.generation} accepted"
        )
    if epoch < floor:
        raise Refused(Reason.OLD_EPOCH, f"epoch {epoch}, at least {floor} is expected")
    return acceptance

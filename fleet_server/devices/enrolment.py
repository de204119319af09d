"""How a device joins: a one-time token is made, and spent for a name, a password and trust.

The token is spent, the device stored and its assignment written in one transaction: a refused
enrolment leaves everything as it was, the token included. How long a token lives and which labels
it gives is the operator's choice; the device chooses its name unless the token names one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
from sqlmodel import Session

from fleet_contract.enrolment import EnrolmentRequest, EnrolmentToken, write_token
from fleet_server.access.service import hash_secret
from fleet_server.devices import cohorts, repository
from fleet_server.devices.assignment import MinimumEpochs, directive_epochs, write_assignment
from fleet_server.devices.service import stored_cohorts
from fleet_server.errors import Conflict, Invalid, Unauthorized
from fleet_server.trust.keyring import Keyring

HOUR_MS = 3_600_000
LONGEST_TOKEN_MS = 90 * 24 * HOUR_MS


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that was just made: the only time that it can be seen."""

    token: str
    expires_ms: int


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A device that was just enrolled, and its password, which is not kept in the clear."""

    device: str
    cohort: str
    password: str


def create_token(
    session: Session,
    keyring: Keyring,
    *,
    server: str,
    root: str,
    labels: Mapping[str, str],
    device: str,
    valid_ms: int,
    random_bytes: Callable[[int], bytes],
    now_ms: int,
) -> NewToken:
    """Make a one-time token.

    Args:
        server: the URL at which devices reach this server.
        root: SHA-256 of the TUF root that the device pins.
        labels: what the device will be labelled with.
        device: the name that the device must take; empty where it may choose.
        valid_ms: how long the token can be spent.

    Raises:
        Invalid: if a label or the name is not allowed, or the time is out of range.
        Conflict: if there is a device of that name.
    """
    fleet = keyring.fleet
    checked = cohorts.check_labels(labels)
    if not 1_000 <= valid_ms <= LONGEST_TOKEN_MS:
        raise Invalid("bad_validity", "A token is valid for 1 second to 90 days.")
    if device:
        cohorts.check_name(device, "device")
        if repository.device(session, fleet, device) is not None:
            raise _name_taken(device)
    secret = random_bytes(32).hex()
    repository.add_token(
        session,
        secret_hash=hash_secret(secret),
        fleet=fleet,
        labels=checked,
        device=device,
        expires_ms=now_ms + valid_ms,
    )
    word = write_token(EnrolmentToken(server=server, fleet=fleet, secret=secret, root=root))
    return NewToken(word, now_ms + valid_ms)


def enrol(
    session: Session,
    keyring: Keyring,
    request: EnrolmentRequest,
    *,
    random_bytes: Callable[[int], bytes],
    now_ms: int,
    minimum_epochs: MinimumEpochs = directive_epochs,
) -> Enrolled:
    """Spend a token for a place in the fleet.

    Raises:
        Unauthorized: if the token is unknown, used, expired or another device's: which of them
            is only told to who holds a token that was right once.
        Conflict: if the name is taken.
    """
    fleet = keyring.fleet
    token_hash = hash_secret(request.secret)
    token = repository.token(session, token_hash)
    if token is None or token.fleet != fleet:
        raise _refuse("unknown_enrolment_token", "This enrolment token is not known.")
    if now_ms >= token.expires_ms:
        raise _refuse("expired_enrolment_token", "This enrolment token has expired.")
    if token.device and token.device != request.device:
        raise _refuse("other_device", f"This enrolment token is for a device named {token.device}.")
    if not repository.spend_token(session, token_hash, now_ms):
        raise _refuse("used_enrolment_token", "This enrolment token was used before.")
    repository.lock_fleet(session, fleet)
    if repository.device(session, fleet, request.device) is not None:
        raise _name_taken(request.device)
    cohort = cohorts.cohort_for(token.labels, stored_cohorts(session, fleet))
    password = random_bytes(32).hex()
    repository.add_device(
        session,
        fleet=fleet,
        name=request.device,
        labels=token.labels,
        cohort=cohort,
        enrolled_ms=now_ms,
        password_hash=hash_secret(password),
        capabilities=msgspec.to_builtins(request.capabilities),
    )
    write_assignment(
        session,
        keyring,
        device=request.device,
        cohort=cohort,
        labels=token.labels,
        minimum_epochs=minimum_epochs(session, fleet, cohort),
        now_ms=now_ms,
    )
    return Enrolled(request.device, cohort, password)


def _refuse(code: str, detail: str) -> Unauthorized:
    return Unauthorized(code, detail, "Ask an operator for a new one: edgefleet device token.")


def _name_taken(device: str) -> Conflict:
    return Conflict(
        "device_exists",
        f"There is a device named {device}.",
        "Choose another name; the token can still be used.",
    )

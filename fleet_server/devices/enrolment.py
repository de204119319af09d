"""How a device joins: a token is made, and spent for a name, a certificate and trust.

The token is spent, the device stored and its assignment written in one transaction: a refused
enrolment leaves everything as it was, the token included. How long a token lives, for how many
devices it is (one, or a batch of a factory) and which labels it gives is the operator's choice; a
device chooses its name unless the token names one, within the token's prefix.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
from sqlmodel import Session

from fleet_contract.enrolment import EnrolmentRequest, EnrolmentToken, write_token
from fleet_server.access.service import hash_secret
from fleet_server.devices import (
    certificate_repository,
    certificates,
    cohorts,
    repository,
    state_repository,
)
from fleet_server.devices.assignment import MinimumEpochs, directive_epochs, write_assignment
from fleet_server.devices.service import stored_cohorts
from fleet_server.errors import Conflict, Invalid, Unauthorized
from fleet_server.trust.authority.authority import Authority
from fleet_server.trust.authority.certificates import key_hash, read_request
from fleet_server.trust.keyring import Keyring

HOUR_MS = 3_600_000
LONGEST_TOKEN_MS = 90 * 24 * HOUR_MS
REPLACEMENT_MS = 7 * 24 * HOUR_MS
LARGEST_BATCH = 10_000
ID_DIGITS = 12


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that was just made: the only time that it can be seen."""

    id: str
    token: str
    expires_ms: int


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A device that was just enrolled, and its certificate in PEM."""

    device: str
    cohort: str
    certificate: bytes


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
    prefix: str = "",
    count: int = 1,
    replaces: bool = False,
) -> NewToken:
    """Make a token.

    Args:
        server: the URL at which devices reach this server.
        root: SHA-256 of the TUF root that the device pins.
        labels: what the device will be labelled with.
        device: the name that the device must take; empty where it may choose.
        valid_ms: how long the token can be spent.
        prefix: how the names of its devices must begin.
        count: for how many devices it is.
        replaces: that ``device`` is there, and shall be enrolled anew under its name.

    Raises:
        Invalid: if a label or a name is not allowed, or the time or the count is out of range.
        Conflict: if there is a device of that name.
    """
    fleet = keyring.fleet
    checked = cohorts.check_labels(labels)
    if not 1_000 <= valid_ms <= LONGEST_TOKEN_MS:
        raise Invalid("bad_validity", "A token is valid for 1 second to 90 days.")
    if not 1 <= count <= LARGEST_BATCH:
        raise Invalid("bad_count", f"A token is for 1 to {LARGEST_BATCH:,} devices.")
    if prefix:
        # What begins a name can be one, but for its last character.
        cohorts.check_name(f"{prefix}0", "device")
    if device:
        cohorts.check_name(device, "device")
        if count > 1 or prefix:
            raise Invalid("bad_token", "A token for one name is for one device.")
        if not replaces and repository.device(session, fleet, device) is not None:
            raise _name_taken(device)
    secret = random_bytes(32).hex()
    hashed = hash_secret(secret)
    repository.add_token(
        session,
        secret_hash=hashed,
        id=hashed[:ID_DIGITS],
        fleet=fleet,
        labels=checked,
        device=device,
        prefix=prefix,
        replaces=replaces,
        count=count,
        used=0,
        created_ms=now_ms,
        expires_ms=now_ms + valid_ms,
    )
    word = write_token(EnrolmentToken(server=server, fleet=fleet, secret=secret, root=root))
    return NewToken(hashed[:ID_DIGITS], word, now_ms + valid_ms)


def enrol(
    session: Session,
    keyring: Keyring,
    authority: Authority,
    request: EnrolmentRequest,
    *,
    lifetime_hours: int,
    now_ms: int,
    minimum_epochs: MinimumEpochs = directive_epochs,
) -> Enrolled:
    """Spend a token for a place in the fleet.

    Who asks again with the same token, name and key is answered again: an answer may get lost.

    Args:
        lifetime_hours: of the certificate.

    Raises:
        Unauthorized: if the token is unknown, used up, expired or another device's: which of them
            is only told to who holds a token that was right once.
        Conflict: if the name is taken.
        Invalid: if the request for a certificate is not one for this name.
    """
    fleet = keyring.fleet
    token_hash = hash_secret(request.secret)
    token = repository.token(session, token_hash)
    if token is None or token.fleet != fleet:
        raise _refuse("unknown_enrolment_token", "This enrolment token is not known.")
    if token.revoked_ms is not None:
        raise _refuse("revoked_enrolment_token", "This enrolment token was revoked.")
    if now_ms >= token.expires_ms:
        raise _refuse("expired_enrolment_token", "This enrolment token has expired.")
    if token.device and token.device != request.device:
        raise _refuse("other_device", f"This enrolment token is for a device named {token.device}.")
    if not request.device.startswith(token.prefix):
        raise _refuse("other_device", f"Names of this token's devices begin with {token.prefix}.")
    labels = token.labels
    key = key_hash(read_request(request.csr, request.device))
    repository.lock_fleet(session, fleet)
    row = repository.device(session, fleet, request.device)
    again = row is not None and certificate_repository.has_key_of_token(
        session, fleet, request.device, token_hash, key
    )
    if row is not None and not again and not token.replaces:
        raise _name_taken(request.device)
    if not again and not repository.spend_token(session, token_hash):
        raise _refuse("used_enrolment_token", "This enrolment token was used before.")
    cohort = cohorts.cohort_for(labels, stored_cohorts(session, fleet))
    if row is None:
        repository.add_device(
            session,
            fleet=fleet,
            name=request.device,
            labels=labels,
            cohort=cohort,
            enrolled_ms=now_ms,
            capabilities=msgspec.to_builtins(request.capabilities),
        )
    else:
        cohort, labels = row.cohort, row.labels
        row.capabilities = msgspec.to_builtins(request.capabilities)
        row.retired_ms = row.alarm = row.alarm_ms = None
        repository.save(session, row)
        if not again:
            # It counts its starts from one; whoever had the name may have counted to the end.
            state_repository.forget(session, fleet, request.device)
    issued = certificates.issue(
        session,
        authority,
        fleet=fleet,
        device=request.device,
        csr=request.csr,
        lifetime_hours=lifetime_hours,
        token_hash=token_hash,
    )
    if not again:
        write_assignment(
            session,
            keyring,
            device=request.device,
            cohort=cohort,
            labels=labels,
            minimum_epochs=minimum_epochs(session, fleet, cohort),
            now_ms=now_ms,
        )
    return Enrolled(request.device, cohort, issued.pem)


def _refuse(code: str, detail: str) -> Unauthorized:
    return Unauthorized(code, detail, "Ask an operator for a new one: edgefleet device token.")


def _name_taken(device: str) -> Conflict:
    return Conflict(
        "device_exists",
        f"There is a device named {device}.",
        "Choose another name; the token can still be used. To enrol that device anew: "
        f"edgefleet device replace {device}.",
    )

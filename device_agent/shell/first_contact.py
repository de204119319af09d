"""First contact: whom a device believes that has nothing but an enrolment token.

Nobody can vouch for a server yet, so over a connection that believes anybody only what proves
itself is fetched: the root whose hash the token carries, and what the metadata below it names. The
token's secret is shown afterwards, to whom the anchors found that way vouch for: a wrong server
learns no secret.
"""

import shutil
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from device_agent.errors import EnrolmentFailed, StepFailed
from device_agent.shell.catalogue import Catalogue
from device_agent.shell.clock import Clock
from device_agent.shell.http_source import HttpFailure, HttpSource
from device_agent.shell.tls import Trouble, anchored, unverified
from fleet_contract import limits
from fleet_contract.enrolment import EnrolmentToken
from fleet_contract.errors import Refused
from fleet_contract.trust.keyset import read_keyset

_CLOCK_CODES = (9, 10)
"""OpenSSL's: a certificate is not valid yet, or no longer."""
_NAME_CODES = (62, 64)
"""OpenSSL's: a certificate is for another host name or address."""


@dataclass(frozen=True, slots=True)
class Contact:
    """What the token's root vouches for; ``anchors`` is empty where the server is plain http."""

    keyset: bytes
    anchors: bytes

    def tls(self) -> Callable[[], ssl.SSLContext] | None:
        """Return what verifies the server from now on; None for plain http."""
        return (lambda: anchored(self.anchors)) if self.anchors else None


def first_contact(folder: Path, token: EnrolmentToken, clock: Clock) -> Contact:
    """Pin the root that the token names in a new folder, and return what it vouches for.

    Raises:
        EnrolmentFailed: in a sentence that says what to do.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
        return _fetch(folder, token, clock)
    except (ValueError, HttpFailure) as error:
        raise unreachable(token, error) from error
    except OSError as error:
        raise EnrolmentFailed(f"{folder.parent} cannot be written ({error.strerror})") from error
    except StepFailed as failed:
        raise EnrolmentFailed(
            f"{token.server} does not show what the root of this token vouches for ({failed}): it "
            "is another server, or this device's clock is wrong"
        ) from failed
    except Refused as refused:
        raise EnrolmentFailed(f"{token.server} has no keyset for this fleet ({refused})") from (
            refused
        )


def _fetch(folder: Path, token: EnrolmentToken, clock: Clock) -> Contact:
    def never() -> bool:
        return False

    catalogue = Catalogue(folder, token.server, clock)
    source = HttpSource(token.server, ticks_ns=clock.ticks_ns, tls=unverified)
    # 1. The root is the one that the token names.
    path = f"v1/trust/roots/{token.root}"
    with source.ask("GET", path, size_bytes=limits.ROOT_BYTES) as answer:
        root = answer.read(limits.ROOT_BYTES)
        if answer.status == 404:
            raise EnrolmentFailed(
                f"{token.server} is not the server that this token is for: it knows no such root"
            )
    catalogue.pin(root, token.root)
    # 2. The keyset is what the metadata below that root says, and of the token's fleet.
    keyset = catalogue.keyset(time_floor_ms=0, canceled=never)
    read_keyset(keyset, fleet=token.fleet, held=None)
    # 3. So are the anchors, without which the secret would be shown to anybody.
    if not token.server.startswith("https:"):
        return Contact(keyset, b"")
    anchors = catalogue.anchors(time_floor_ms=0, canceled=never)
    if anchors is None:
        raise EnrolmentFailed(
            f"{token.server} publishes no certificates (anchors.pem) by which a device could "
            "verify it, so it is not shown the token: bring the server up to date"
        )
    try:
        anchored(anchors)
    except ValueError as error:
        raise EnrolmentFailed(f"anchors.pem of {token.server} is of no use: {error}") from error
    return Contact(keyset, anchors)


def unreachable(token: EnrolmentToken, error: Exception) -> EnrolmentFailed:
    """Return the failure of a connection, with the most likely cause and what to do."""
    if isinstance(error, HttpFailure) and error.trouble is Trouble.UNVOUCHED:
        return EnrolmentFailed(f"{token.server} is not shown the token: {_unvouched(error)}")
    return EnrolmentFailed(
        f"{token.server} cannot be reached ({error}): is the server running, and is this "
        "address right from here?"
    )


def _unvouched(error: HttpFailure) -> str:
    cause = error.__cause__
    code = cause.verify_code if isinstance(cause, ssl.SSLCertVerificationError) else 0
    if code in _CLOCK_CODES:
        return (
            "its certificate is not valid at this device's time; set the clock "
            "(timedatectl set-ntp true), or let the server renew its certificate"
        )
    if code in _NAME_CODES:
        return (
            "its certificate is for another name than this address; let the server's settings "
            "name the address by which devices reach it, and take a new token"
        )
    return (
        "the fleet's anchors do not vouch for its certificate; somebody else answers there, or "
        "it runs behind a proxy with a certificate of its own"
    )

"""Devices on HTTP: the certificate that TLS has verified, and that is written down as theirs.

The listener of devices puts it into the request as the ASGI specification's TLS extension says.
Who comes over another listener has shown none.
"""

import hashlib
import ssl
from typing import Annotated, Any, cast

from fastapi import Depends, Request

from fleet_server.access.authentication import Bearer, UsedAdmission, require_operator
from fleet_server.devices import certificates
from fleet_server.errors import Unauthorized
from fleet_server.request_context import UsedClock, UsedDatabase, UsedSettings
from fleet_server.trust.authority.authority import Authority


def _authority(request: Request) -> Authority:
    return cast(Authority, request.app.state.authority)


UsedAuthority = Annotated[Authority, Depends(_authority)]


def shown_fingerprint(
    request: Request,
    database: UsedDatabase,
    authority: UsedAuthority,
    settings: UsedSettings,
    clock: UsedClock,
) -> str | None:
    """Return the SHA-256 of the client certificate of the request's connection, None for none."""
    extension: dict[str, Any] = request.scope.get("extensions", {}).get("tls", {})
    chain = extension.get("client_cert_chain") or ()
    if not chain:
        return None
    der = ssl.PEM_cert_to_DER_cert(chain[0])
    if authority.forgotten(der) is not None:
        with database.transaction() as session:
            certificates.recall(session, authority, settings.fleet, der, clock.now_ms())
    return hashlib.sha256(der).hexdigest()


Shown = Annotated[str | None, Depends(shown_fingerprint)]


def require_certificate(shown: Shown) -> str:
    """Return the fingerprint of the certificate that the device shows, whatever it is worth.

    Raises:
        Unauthorized: if it shows none.
    """
    if shown is None:
        raise _nothing_shown("This needs a device's certificate.")
    return shown


ShownCertificate = Annotated[str, Depends(require_certificate)]


def require_device(
    shown: ShownCertificate,
    database: UsedDatabase,
    settings: UsedSettings,
    authority: UsedAuthority,
    clock: UsedClock,
) -> str:
    """Return the name of the device that asks.

    Raises:
        Unauthorized: if it shows no certificate, or one that is not believed now.
    """
    with database.reading() as session:
        return certificates.holder(session, authority, settings.fleet, shown, now_ms=clock.now_ms())


KnownDevice = Annotated[str, Depends(require_device)]


def device_or_operator(
    request: Request,
    shown: Shown,
    bearer: Bearer,
    database: UsedDatabase,
    settings: UsedSettings,
    admission: UsedAdmission,
    authority: UsedAuthority,
    clock: UsedClock,
) -> str:
    """Return the name of the device or the user that asks.

    Raises:
        Unauthorized: if nobody known does.
        TooManyAttempts: after too many wrong tokens from this address.
    """
    if shown is not None:
        with database.reading() as session:
            return certificates.holder(
                session, authority, settings.fleet, shown, now_ms=clock.now_ms()
            )
    if bearer is None:
        raise _nothing_shown("This needs a device's certificate, or an operator's token.")
    return require_operator(request, bearer, admission).name


def _nothing_shown(what: str) -> Unauthorized:
    return Unauthorized(
        "no_credentials",
        what,
        "A device gets its certificate by: device-agent enroll TOKEN, and shows it at the address "
        "for devices.",
    )

"""Devices on HTTP: Basic authentication with the name and the password from enrolment."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPBasic, HTTPBasicCredentials

from fleet_server.access.authentication import (
    Bearer,
    UsedAdmission,
    address_of,
    require_operator,
)
from fleet_server.devices import service
from fleet_server.errors import Unauthorized
from fleet_server.request_context import UsedDatabase, UsedSettings

_BASIC = HTTPBasic(
    auto_error=False, scheme_name="device", description="A device's name and password."
)
Basic = Annotated[HTTPBasicCredentials | None, Depends(_BASIC)]


def device_or_operator(
    request: Request,
    bearer: Bearer,
    basic: Basic,
    database: UsedDatabase,
    settings: UsedSettings,
    admission: UsedAdmission,
) -> str:
    """Return the name of the device or the user that asks.

    Raises:
        Unauthorized: if nobody known does.
        TooManyAttempts: after too many wrong credentials from this address.
    """
    if basic is not None:
        attempt = admission.attempt(address_of(request), f"{basic.username}:{basic.password}")
        with attempt, database.reading() as session:
            return service.authenticate(session, settings.fleet, basic.username, basic.password)
    if bearer is None:
        raise Unauthorized(
            "no_credentials",
            "This needs a device's name and password, or an operator's token.",
            "A device gets its password by: device-agent enroll TOKEN.",
        )
    return require_operator(request, bearer, admission).name

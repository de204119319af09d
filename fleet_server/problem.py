"""Errors as the API says them: RFC 9457 problem+json, never a stack trace.

Decides which status each error becomes and what of it a client may read. The errors themselves are
the domains'. Nothing that a client sent is repeated here except names and places: it may be secret.
"""

import errno
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from fleet_contract.errors import InvalidName, Reason, Refused
from fleet_server.errors import (
    Conflict,
    DomainError,
    Forbidden,
    Full,
    Invalid,
    NotFound,
    TooLarge,
    TooManyAttempts,
    Unauthorized,
    Unavailable,
)

DISK = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
)
"""What an operator has to mend; every other error of the system is a mistake of ours."""
MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:edgefleet:problem:"
_STATUS: dict[type[DomainError], tuple[int, str]] = {
    Invalid: (422, "The request is not valid"),
    NotFound: (404, "Not found"),
    Conflict: (409, "Not possible now"),
    Unauthorized: (401, "Who are you?"),
    Forbidden: (403, "Not allowed"),
    TooLarge: (413, "Too large"),
    TooManyAttempts: (429, "Not so fast"),
    Unavailable: (503, "Not available at the moment"),
    Full: (507, "No room"),
}
_PLAIN = {
    400: ("bad_request", "The request cannot be read", ""),
    404: ("no_such_path", "Not found", "The API's paths are listed at /docs."),
    405: ("method_not_allowed", "This path has no such method", "The paths are listed at /docs."),
    413: ("too_large", "Too large", ""),
    415: ("unsupported_media_type", "The body's media type is not supported", ""),
}
_EXAMPLE: dict[str, Any] = {
    "type": "urn:edgefleet:problem:no_such_device",
    "title": "Not found",
    "status": 404,
    "detail": "There is no device named 'dev-0042'.",
    "instance": "/v1/devices/dev-0042",
    "correlation_id": "4f1c0c8a9be24d0e",
    "advice": "List them by: edgefleet device list.",
}


class Problem(BaseModel):
    """What went wrong. ``type`` is stable and made for programs, the rest for people."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    type: str
    title: str
    status: int
    detail: str
    instance: str
    correlation_id: str
    advice: str


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}},
    }
    for status, description in (
        (400, "The request cannot be read."),
        (401, "It needs credentials, and there are none that are right."),
        (403, "The credentials do not allow it."),
        (404, "What it is about does not exist."),
        (409, "The present state does not allow it."),
        (413, "It has too many bytes."),
        (422, "It is not of the documented form."),
        (429, "Too many wrong credentials came from this address, or too much is under way."),
        (503, "The server cannot do it at the moment; nothing was changed."),
        (507, "The server's disk has no room."),
    )
}
"""For every endpoint of the OpenAPI document."""


def describe(error: Exception, *, instance: str, correlation_id: str) -> Problem:
    """Return what a client may know of an error; whatever is not expected becomes a plain 500."""
    status, code, title, detail, advice = _read(error)
    return Problem(
        type=TYPE_PREFIX + code,
        title=title,
        status=status,
        detail=detail,
        instance=instance[:300],
        correlation_id=correlation_id,
        advice=advice,
    )


def respond(problem: Problem) -> JSONResponse:
    """Return the problem as a response."""
    headers = {}
    if problem.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="edgefleet", Basic realm="edgefleet"'
    if problem.status == 503:
        headers["Retry-After"] = "1"
    if problem.status == 429:
        headers["Retry-After"] = "60"
    return JSONResponse(
        problem.model_dump(), problem.status, headers=headers, media_type=MEDIA_TYPE
    )


def _read(error: Exception) -> tuple[int, str, str, str, str]:
    """Status, code, title, detail and advice."""
    if isinstance(error, DomainError):
        for kind, (status, title) in _STATUS.items():
            if isinstance(error, kind):
                return status, error.code, title, error.detail, error.advice
    if isinstance(error, Refused):
        status, title = _STATUS[TooLarge if error.reason is Reason.TOO_LARGE else Invalid]
        return status, error.reason.value, title, f"{error.detail}.", ""
    if isinstance(error, InvalidName):
        return (*_coded(Invalid, "invalid_name"), f"{error}.", "")
    if isinstance(error, RequestValidationError):
        return (*_coded(Invalid, "invalid_request"), _places(error), "See /docs for the form.")
    if isinstance(error, HTTPException):
        code, title, advice = _PLAIN.get(error.status_code, ("refused", "Refused", ""))
        return error.status_code, code, title, f"{title}.", advice
    if isinstance(error, OSError) and error.errno in DISK:
        return (
            *_coded(Unavailable, "disk_refuses"),
            f"The server's disk refuses: {error.strerror}.",
            "Make room, or repair it; then look whether it was done (of trust: edgefleet trust "
            "status), and run it again if it was not.",
        )
    if isinstance(error, SQLAlchemyError):
        return (
            *_coded(Unavailable, "database_unavailable"),
            "The database did not take the request; nothing was changed.",
            "Try again in a moment. If it stays so, look into the server's log.",
        )
    return (
        500,
        "internal",
        "The server failed",
        "Something went wrong in the server; nothing was changed.",
        "Look for the correlation id in the server's log, and report it.",
    )


def _coded(kind: type[DomainError], code: str) -> tuple[int, str, str]:
    status, title = _STATUS[kind]
    return status, code, title


def _places(error: RequestValidationError) -> str:
    """Where the request is wrong and why, without the values that it had."""
    places = [
        f"{'.'.join(str(step) for step in problem['loc'])[:120]}: {problem['msg'][:200]}"
        for problem in error.errors()[:5]
    ]
    return "; ".join(places) + "."

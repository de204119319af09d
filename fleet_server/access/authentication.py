"""Who is asking: endpoints that declare ``Operator`` are closed to everybody else."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from fleet_server.access import service
from fleet_server.access.service import User
from fleet_server.errors import Unauthorized
from fleet_server.request_context import UsedDatabase

_BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="operator",
    description="The token in the file admin-token of the server's data folder.",
)
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]


def require_operator(request: Request, bearer: Bearer, database: UsedDatabase) -> User:
    """Return the user behind the request's token.

    Raises:
        Unauthorized: if there is no token, or nobody's.
    """
    if bearer is None:
        raise Unauthorized(
            "no_token",
            "This needs an operator's token.",
            "Send the header Authorization: Bearer TOKEN; the first token is in the file "
            "admin-token of the server's data folder.",
        )
    with database.reading() as session:
        user = service.authenticate(session, bearer.credentials)
    # For the audit of what is refused after this.
    request.state.user = user.name
    return user


Operator = Annotated[User, Depends(require_operator)]

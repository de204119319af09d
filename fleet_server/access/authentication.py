"""Who is asking, and whether the endpoint is theirs: ``Operator`` closes it to everybody else.

What an endpoint demands is in the table of :mod:`.permissions`; one that is not there stays
closed.
"""

from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from fleet_server.access.admission import Admission
from fleet_server.access.permissions import ENDPOINTS, Reach
from fleet_server.access.users import User
from fleet_server.errors import Forbidden, Unauthorized

_BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="operator",
    description="A token of `edgefleet token create`, the one in the file admin-token of the "
    "server's data folder, or one of the identity provider.",
)
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]


def _admission(request: Request) -> Admission:
    return cast(Admission, request.app.state.admission)


UsedAdmission = Annotated[Admission, Depends(_admission)]


def address_of(request: Request) -> str:
    """Where a request comes from: the address of the connection, not what a header says."""
    return request.client.host if request.client is not None else ""


def require_operator(request: Request, bearer: Bearer, admission: UsedAdmission) -> User:
    """Return the user behind the request's token, if this endpoint is theirs.

    Raises:
        Unauthorized: if there is no token, or nobody's.
        Forbidden: if the token does not allow this.
        TooManyAttempts: after too many wrong tokens from this address.
    """
    if bearer is None:
        raise Unauthorized(
            "no_token",
            "This needs an operator's token.",
            "Send the header Authorization: Bearer TOKEN; the first token is in the file "
            "admin-token of the server's data folder.",
        )
    user = admission.admit(bearer.credentials, address=address_of(request))
    # For the audit of what is refused after this.
    request.state.user = user.name
    path = getattr(request.scope.get("route"), "path_format", "")
    rule = ENDPOINTS.get((request.method, path))
    if rule is None or rule.permission is None:
        raise Forbidden("undeclared", "Nobody has declared who may do this.")
    user.require(rule.permission)
    if rule.reach is Reach.FLEET:
        user.require_whole_fleet()
    elif rule.reach is Reach.MODEL and "model" in request.path_params:
        user.require_model(request.path_params["model"])
    return user


Operator = Annotated[User, Depends(require_operator)]

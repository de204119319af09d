"""The roles of an installation: those that are always there, and those of its roles file.

The file is JSON: ``{"platform-lead": ["read", "approve", "rollback"]}``. It adds roles; what the
built-in ones may do cannot be changed, since people rely on their names.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from fleet_contract import names
from fleet_contract.errors import InvalidName
from fleet_server.access.permissions import ROLES, Permission
from fleet_server.errors import Invalid, StartError

FILE_BYTES = 64 * 1024
ROLES_MOST = 50

Roles = Mapping[str, frozenset[Permission]]
"""Role → what it may do."""


def read_roles(path: str) -> Roles:
    """Return the built-in roles and those of the file; an empty path names no file.

    Raises:
        StartError: if the file cannot be read, names an unknown permission, or changes a
            built-in role.
    """
    if not path:
        return ROLES
    try:
        with Path(path).expanduser().open("rb") as file:
            data = file.read(FILE_BYTES + 1)
        found = json.loads(data) if len(data) <= FILE_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise _refuse(f"it cannot be read as JSON ({type(error).__name__})") from error
    if not isinstance(found, dict) or len(found) > ROLES_MOST:
        raise _refuse(f"write one JSON object of at most {ROLES_MOST} roles")
    return {**ROLES, **{name: _role(name, listed) for name, listed in found.items()}}


def permissions_of(roles: Roles, names_of_roles: Iterable[str]) -> frozenset[Permission]:
    """Return what these roles may do together; a role that was taken out of the file: nothing."""
    return frozenset().union(*(roles.get(name, frozenset()) for name in names_of_roles))


def check_roles(roles: Roles, wanted: Iterable[str]) -> None:
    """Refuse roles that do not exist.

    Raises:
        Invalid: for the first of them.
    """
    for name in wanted:
        if name not in roles:
            raise Invalid(
                "no_such_role",
                f"There is no role {name[:80]!r}.",
                f"Roles are {', '.join(sorted(roles))}; the setting roles_file adds others.",
            )


def _role(name: str, listed: object) -> frozenset[Permission]:
    try:
        names.check_identity(name, "role")
    except InvalidName as error:
        raise _refuse(str(error)) from error
    if name in ROLES:
        raise _refuse(f"the role {name} is built in and cannot be changed")
    if not isinstance(listed, list) or not listed:
        raise _refuse(f"the role {name} needs a list of permissions")
    try:
        return frozenset(Permission(word) for word in listed)
    except (ValueError, TypeError) as error:
        known = ", ".join(permission.value for permission in Permission)
        raise _refuse(f"the role {name} names an unknown permission; there are {known}") from error


def _refuse(why: str) -> StartError:
    return StartError(
        "bad_roles_file",
        f"The roles file cannot be used: {why}.",
        "docs/reference/access.md shows one. It is named by EDGEFLEET_ROLES_FILE.",
    )

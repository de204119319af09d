"""Somebody who operates the fleet, and what of it is theirs."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from fleet_server.access.permissions import Permission
from fleet_server.errors import Forbidden


@dataclass(frozen=True, slots=True)
class User:
    """A person or a program behind a credential.

    ``models`` are names or, with a closing ``*``, beginnings of names; empty means all.
    """

    name: str
    roles: tuple[str, ...] = ()
    permissions: frozenset[Permission] = field(default_factory=frozenset)
    fleets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    def sees(self, model: str) -> bool:
        """Say whether a model is one of this user's."""
        return not self.models or any(covers(family, model) for family in self.models)

    def require(self, permission: Permission) -> None:
        """Refuse what the user's roles do not allow.

        Raises:
            Forbidden: if none of the roles has the permission.
        """
        if permission not in self.permissions:
            raise Forbidden(
                "missing_permission",
                f"This needs the permission {permission.value}; your roles are "
                f"{', '.join(self.roles) or 'none'}.",
                "Ask for a token with another role; docs/reference/access.md lists them.",
            )

    def require_model(self, model: str) -> None:
        """Refuse a model that the token is not for.

        Raises:
            Forbidden: if it is another family's.
        """
        if not self.sees(model):
            raise Forbidden(
                "other_family",
                f"Your token is for the models {', '.join(self.models)} only.",
                "Ask for a token of that family.",
            )

    def require_whole_fleet(self) -> None:
        """Refuse what touches every model to a token that is for some.

        Raises:
            Forbidden: if the token is limited to families of models.
        """
        if self.models:
            raise Forbidden(
                "whole_fleet",
                f"This touches the whole fleet; your token is for the models "
                f"{', '.join(self.models)} only.",
                "Ask somebody whose token is not limited.",
            )


def covers(family: str, model: str) -> bool:
    """Say whether a family (a name, or a beginning and ``*``) covers a model or another family."""
    if family.endswith("*"):
        return model.startswith(family[:-1])
    return model == family


def within(limits: Iterable[str], wanted: Iterable[str]) -> bool:
    """Say whether a limit (empty: none) includes another one."""
    held, asked = list(limits), list(wanted)
    if not held:
        return True
    return bool(asked) and all(any(covers(family, item) for family in held) for item in asked)

"""Whose signatures a change needs, and how many of them it has.

Root is signed by the old root's threshold and by its own; every other role by the threshold of the
role that delegates to it, as it will be after the change. Pure: metadata in, answers out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tuf.api.metadata import Key, Metadata, Root, Targets

from fleet_server.trust.catalogue.proposals import signing_role

Committed = Callable[[str], Root | Targets]
"""Returns a role as it is committed now."""


@dataclass(frozen=True, slots=True)
class Need:
    """The signatures that one delegator wants for a role: ``by`` says which one that is."""

    role: str
    by: str
    threshold: int
    signed: dict[str, Key]
    unsigned: dict[str, Key]

    @property
    def missing(self) -> int:
        """How many signatures are missing."""
        return max(0, self.threshold - len(self.signed))


def needs(files: Mapping[str, Metadata[Any]], committed: Committed) -> list[Need]:
    """Return what every file of a change needs; complete means that nothing is missing in any.

    Raises:
        ValueError: if nobody delegates to one of the roles.
    """
    found: list[Need] = []
    for role, metadata in files.items():
        for by, delegator in _delegators(role, files, committed):
            result = delegator.get_verification_result(
                role, metadata.signed_bytes, metadata.signatures
            )
            found.append(Need(role, by, result.threshold, result.signed, result.unsigned))
    return found


def _delegators(
    role: str, files: Mapping[str, Metadata[Any]], committed: Committed
) -> list[tuple[str, Root | Targets]]:
    def after(name: str) -> Root | Targets:
        signed = files[name].signed if name in files else committed(name)
        assert isinstance(signed, Root | Targets)
        return signed

    if role == "root":
        return [("the present root", committed("root")), ("the next root", after("root"))]
    if role == "targets":
        return [("root", after("root"))]
    if role.startswith("bin."):
        return [(signing_role(role), after(signing_role(role)))]
    return [("targets", after("targets"))]

"""Changes that wait for signatures which are not to be had here, kept until they have them all.

A proposal is a whole change: the next version of some roles, each with the signatures gathered so
far, the documents and keys that come with it. It is a file of its own below ``pending/``. One that
has all its signatures is a promise: whoever finds it at the next start carries it out. Who has to
sign is decided in :mod:`fleet_server.trust.catalogue.approval`.
"""

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.metadata import Metadata, Root, Signature

from fleet_contract import codec
from fleet_contract.errors import Refused
from fleet_server.trust import durable
from fleet_server.trust.catalogue.signers import HeldKey, unreadable

FILE_BYTES = 64 * 1024 * 1024
"""The bins of a family with thousands of releases, signed anew, are megabytes."""


class Proposal(msgspec.Struct, frozen=True):
    """One change of the repository.

    ``files`` maps a role to its next metadata as JSON; ``documents`` maps the path of a target of
    the top-level role to its bytes; ``signers`` maps a role to the keys that it has afterwards.
    ``why`` tells people, one line for each change that was merged into this one. ``earlier`` are
    roots, complete and in order, that come before the one in ``files``.
    """

    id: str
    made_ms: int
    why: list[str]
    files: dict[str, dict[str, Any]]
    documents: dict[str, bytes] = {}
    signers: dict[str, list[HeldKey]] = {}
    earlier: list[dict[str, Any]] = []

    def earlier_roots(self) -> list[Metadata[Root]]:
        """Return the roots that come before the proposed one."""
        return [Metadata[Root].from_dict(_copy(data)) for data in self.earlier]

    def metadata(self) -> dict[str, Metadata[Any]]:
        """Return role → metadata."""
        return {role: Metadata.from_dict(_copy(data)) for role, data in self.files.items()}

    def signed_by(self, role: str, keyid: str, signature: str) -> "Proposal":
        """Return the proposal with one more signature, in hexadecimal."""
        metadata = Metadata[Any].from_dict(_copy(self.files[role]))
        metadata.signatures[keyid] = Signature(keyid, signature)
        return msgspec.structs.replace(self, files={**self.files, role: plain_form(metadata)})

    def groups(self) -> set[str]:
        """Return what this touches: changes of one group have to be made one after another."""
        return {group_of(role) for role in self.files}


def group_of(role: str) -> str:
    """Return the group of a role: root and targets change together, a family with its bins."""
    if role in {"root", "targets"}:
        return "top"
    return signing_role(role)


def signing_role(role: str) -> str:
    """Return the role whose key signs a role: a model's bins are signed by the model's key."""
    if role.startswith("bin."):
        return f"model.{role.removeprefix('bin.').rpartition('-')[0]}"
    return role


def identity(files: dict[str, dict[str, Any]]) -> str:
    """Return a name for a proposal: what it would have signed decides it."""
    signed = {role: data["signed"] for role, data in sorted(files.items())}
    return hashlib.sha256(msgspec.json.encode(signed, order="deterministic")).hexdigest()[:16]


def plain_form(metadata: Metadata[Any]) -> dict[str, Any]:
    """Return metadata as JSON that shares nothing with it."""
    return _copy(metadata.to_dict())


class ProposalFiles:
    """The folder of pending proposals."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> dict[str, Proposal]:
        """Return id → proposal, in the order in which they were made.

        Raises:
            StartError: if one cannot be read: signatures that people gave would be lost.
        """
        if not self._folder.is_dir():
            return {}
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                data = path.read_bytes()
                found.append(codec.decode_json(data, Proposal, limit_bytes=FILE_BYTES))
            except (OSError, Refused) as error:
                raise unreadable(f"pending/{path.name}: {type(error).__name__}") from error
        return {item.id: item for item in sorted(found, key=lambda item: item.made_ms)}

    def save(self, proposal: Proposal, replaced: Iterable[str] = ()) -> None:
        """Write a proposal, then remove those that it takes in. Raises OSError."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        durable.write_file(self._folder / f"{proposal.id}.json", codec.encode_json(proposal))
        for name in replaced:
            if name != proposal.id:
                self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a proposal that is carried out; found again, it would change nothing."""
        with contextlib.suppress(OSError):
            (self._folder / f"{name}.json").unlink()


def _copy(data: dict[str, Any]) -> dict[str, Any]:
    # python-tuf takes apart what it is given.
    copied: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(data))
    return copied

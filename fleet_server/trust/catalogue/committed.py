"""What the repository has committed: how it is read, checked, signed, and made the first time.

Decides how long signatures are good for. How what is committed changes is decided in
:mod:`fleet_server.trust.catalogue.repository`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Key,
    Metadata,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from fleet_server.trust.catalogue.files import CatalogueFiles
from fleet_server.trust.catalogue.signers import HeldKey, Signers

DAY_MS = 24 * 3_600_000
TOP_LEVEL = ("root", "targets", "snapshot", "timestamp")
_COMPACT = JSONSerializer(compact=True)


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long signatures are good for. The online roles' bound how long a freeze can last."""

    root_ms: int = 365 * DAY_MS
    targets_ms: int = 365 * DAY_MS
    snapshot_ms: int = 7 * DAY_MS
    timestamp_ms: int = DAY_MS


@dataclass(frozen=True, slots=True)
class Shown:
    """What the world sees: replaced as a whole once the timestamp is written."""

    root: Metadata[Root]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]
    timestamp_bytes: bytes


@dataclass(frozen=True, slots=True)
class Founders:
    """Who signs a role's first version and holds its keys elsewhere."""

    signers: Sequence[CryptoSigner]
    threshold: int


def make(
    files: CatalogueFiles,
    signers: Signers,
    *,
    now_ms: int,
    lifetimes: Lifetimes,
    founders: Mapping[str, Founders],
    documents: Mapping[str, bytes],
) -> bytes:
    """Write the first root, targets, snapshot and timestamp, and return the root.

    A role without ``founders`` gets a new local key. ``documents`` is what targets vouch for.

    Raises:
        OSError: if that fails; nothing may be made of what is there then.
    """
    files.make()
    held = {
        role: [HeldKey(key.keyid, key.to_dict(), "") for key in _keys(founders[role])]
        if role in founders
        else [signers.make_key(role)]
        for role in TOP_LEVEL
    }
    signers.replace(held)
    root = Root(expires=expiry(now_ms + lifetimes.root_ms), consistent_snapshot=True)
    for role in TOP_LEVEL:
        for key in signers.public_keys(role):
            root.add_key(key, role)
        root.roles[role].threshold = founders[role].threshold if role in founders else 1
    targets = Targets(expires=expiry(now_ms + lifetimes.targets_ms))
    for path, data in documents.items():
        files.write_document(path, data)
        targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])
    first: tuple[tuple[str, Signed], ...] = (
        ("root", root),
        ("targets", targets),
        ("snapshot", Snapshot(expires=expiry(now_ms + lifetimes.snapshot_ms))),
        ("timestamp", Timestamp(expires=expiry(now_ms + lifetimes.timestamp_ms))),
    )
    for role, signed in first:
        name = "timestamp.json" if role == "timestamp" else f"1.{role}.json"
        metadata = Metadata[Any](signed)
        if role in founders:
            for founder in founders[role].signers:
                metadata.sign(founder, append=True)
            files.write(name, to_bytes(metadata))
        else:
            files.write(name, sign(metadata, signers, role))
    return files.read("1.root.json")


def _keys(founders: Founders) -> list[Key]:
    return [signer.public_key for signer in founders.signers]


def load(files: CatalogueFiles, root_version: int | None = None) -> Shown:
    """Return what is committed on disk, with every top-level signature checked.

    Args:
        files: the folder.
        root_version: the root that vouches for it; by default the newest.

    Raises:
        OSError, ValueError: if it cannot be read, or is not what its root vouches for.
    """
    try:
        root = Metadata[Root].from_bytes(
            files.read(f"{root_version or files.newest_root()}.root.json")
        )
        _verify(root, "root", root)
        data = files.read("timestamp.json")
        timestamp = Metadata[Timestamp].from_bytes(data)
        _verify(root, "timestamp", timestamp)
        version = timestamp.signed.snapshot_meta.version
        snapshot = Metadata[Snapshot].from_bytes(files.read(f"{version}.snapshot.json"))
        _verify(root, "snapshot", snapshot)
        targets_version = snapshot.signed.meta["targets.json"].version
        targets = Metadata[Targets].from_bytes(files.read(f"{targets_version}.targets.json"))
        _verify(root, "targets", targets)
    except (RepositoryError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}"[:300]) from error
    return Shown(root, snapshot, timestamp, data)


def highest_version(shown: Shown) -> int:
    """Return the last number that a committed file of targets metadata took."""
    return max(meta.version for meta in shown.snapshot.signed.meta.values())


def _verify(root: Metadata[Root], role: str, metadata: Metadata[Any]) -> None:
    root.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


def sign(metadata: Metadata[Any], signers: Signers, role: str) -> bytes:
    """Return the metadata as a file, signed by every key of the role that is here.

    Raises:
        Unavailable: if there is none.
    """
    for signer in signers.of(role):
        metadata.sign(signer, append=True)
    return to_bytes(metadata)


def to_bytes(metadata: Metadata[Any]) -> bytes:
    """Return the metadata as a file."""
    return metadata.to_bytes(_COMPACT)


def expiry(at_ms: int) -> datetime:
    """Return a time as TUF writes it, in whole seconds."""
    return datetime.fromtimestamp(at_ms // 1000, UTC)

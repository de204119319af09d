"""The repository at the start of the server: made once, opened afterwards, never half.

All keys are made locally unless somebody replaced them: whoever reads that disk owns the fleet, so
that is for trying out. A repository is never made anew beside what an older one has signed.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from fleet_server.errors import StartError
from fleet_server.trust import durable
from fleet_server.trust.catalogue import committed
from fleet_server.trust.catalogue.changing import Changes
from fleet_server.trust.catalogue.committed import TOP_LEVEL, Founders, Lifetimes, Shown
from fleet_server.trust.catalogue.files import CatalogueFiles
from fleet_server.trust.catalogue.proposals import ProposalFiles
from fleet_server.trust.catalogue.repository import FAMILIES, Catalogue
from fleet_server.trust.catalogue.signers import Signers, unreadable

KEYS = "keys"
PENDING = "pending"


def open_catalogue(
    folder: Path,
    *,
    may_make: bool,
    random_bytes: Callable[[int], bytes],
    now_ms: Callable[[], int],
    lifetimes: Lifetimes | None = None,
) -> Catalogue:
    """Return the repository in ``folder``, made there if the folder does not exist.

    Args:
        folder: its keys, metadata and targets.
        may_make: whether there is nothing yet that devices could have trusted.
        random_bytes: for new keys.
        now_ms: for expiry.
        lifetimes: of signatures.

    Raises:
        StartError: if it is there and cannot be used, is missing though it must not be, or cannot
            be written.
    """
    lifetimes = lifetimes or Lifetimes()
    made_now = not folder.exists()
    if made_now:
        if not may_make:
            raise unreadable("its folder is missing")
        make_catalogue(folder, random_bytes, now_ms(), lifetimes)
    files = CatalogueFiles(folder)
    signers = Signers.open(folder / KEYS, random_bytes)
    if not all(signers.knows(role) for role in TOP_LEVEL):
        raise unreadable("a top-level role has no keys")
    proposals = ProposalFiles(folder / PENDING)
    try:
        shown = _load(files, proposals)
        files.sweep(committed.highest_version(shown))
        changes = Changes(files, signers, proposals, shown, now_ms, lifetimes)
        changes.finish()
    except (OSError, ValueError) as error:
        raise unreadable(str(error)[:200]) from error
    return Catalogue(changes, made_now=made_now)


def _load(files: CatalogueFiles, proposals: ProposalFiles) -> Shown:
    newest = files.newest_root()
    try:
        return committed.load(files, newest)
    except ValueError:
        # Killed when the next root was written and the metadata signed by its keys was not: what
        # was begun then is still among the proposals, and is carried out again.
        for item in proposals.load().values():
            roots = [*item.earlier_roots(), *filter(None, [item.metadata().get("root")])]
            versions = [root.signed.version for root in roots]
            if newest in versions:
                return committed.load(files, versions[0] - 1)
        raise


def make_catalogue(
    folder: Path,
    random_bytes: Callable[[int], bytes],
    now_ms: int,
    lifetimes: Lifetimes | None = None,
    *,
    founders: Mapping[str, Founders] | None = None,
    documents: Mapping[str, bytes] | None = None,
    families_offline: bool = False,
) -> str:
    """Make the repository in ``folder`` and return its root's SHA-256.

    Args:
        folder: where nothing is yet.
        random_bytes: for the keys that are made here.
        now_ms: the time of the first signatures.
        lifetimes: of signatures.
        founders: whose keys root and targets get; by default they are made here, too.
        documents: what targets vouch for from the beginning.
        families_offline: every family has to bring its own public key.

    Raises:
        StartError: if it cannot be written.
    """
    # Everything appears at once: a crash in between leaves a folder that nobody reads.
    fresh = folder.with_name(f"{folder.name}.new")
    try:
        fresh.mkdir(mode=0o700, parents=True, exist_ok=True)
        signers = Signers.make(fresh / KEYS, random_bytes)
        root = committed.make(
            CatalogueFiles(fresh),
            signers,
            now_ms=now_ms,
            lifetimes=lifetimes or Lifetimes(),
            founders=founders or {},
            documents=documents or {},
        )
        if families_offline:
            signers.replace({FAMILIES: []})
        durable.sync_folder(fresh)
        fresh.rename(folder)
        durable.sync_folder(folder.parent)
    except OSError as error:
        raise StartError(
            "trust_unwritable",
            f"The repository of what exists cannot be written: {error.strerror}.",
            "Give the server a data folder that it may write.",
        ) from error
    return hashlib.sha256(root).hexdigest()

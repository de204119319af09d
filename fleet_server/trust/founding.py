"""The first ceremony: all of a fleet's trust made before its server starts for the first time.

Root and targets get keys that are never on the server; everything online is made in the data
folder. The repository appears last and at once, so that a crash leaves nothing that a server would
start with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleet_contract.enrolment import ANCHORS_PATH
from fleet_contract.trust.keyset import KEYSET_PATH
from fleet_server.errors import Conflict, Invalid
from fleet_server.trust import offline
from fleet_server.trust.authority.making import make_authorities
from fleet_server.trust.catalogue.committed import Founders
from fleet_server.trust.catalogue.opening import make_catalogue
from fleet_server.trust.keyring import open_keyring


@dataclass(frozen=True, slots=True)
class Founded:
    """What was made: the root's digest, and by role the key ids of its holders and their files."""

    root_digest: str
    keys: dict[str, list[str]]
    files: dict[str, list[str]]


def found(
    data_dir: Path,
    folder: Path,
    *,
    fleet: str,
    keys: int,
    threshold: int,
    families_offline: bool,
    random_bytes: Callable[[int], bytes],
    now_ms: int,
) -> Founded:
    """Make root's and targets' keys in ``folder``, and everything online below ``data_dir``.

    Raises:
        Conflict: if the data folder has keys or a repository already.
        Invalid: if the threshold cannot be, or the keys cannot be written.
        StartError: if the data folder cannot be written.
    """
    if any((data_dir / name).exists() for name in ("trust", "keys", "pki")):
        raise Conflict(
            "trust_exists",
            f"{data_dir} belongs to a fleet whose keys were made already.",
            "Move its root and targets out of it: edgefleet trust rotate root --offline DIR; "
            "or name an empty folder (--data-dir).",
        )
    if threshold > keys:
        raise Invalid(
            "no_such_threshold", f"{threshold} of {keys} keys cannot sign.", "Give more --keys."
        )
    made = {role: offline.make_keys(folder, role, keys) for role in ("root", "targets")}
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    keyring = open_keyring(data_dir / "keys", fleet=fleet, random_bytes=random_bytes)
    anchors = make_authorities(
        data_dir / "pki", fleet=fleet, random_bytes=random_bytes, now_ms=now_ms
    )
    digest = make_catalogue(
        data_dir / "trust",
        random_bytes,
        now_ms,
        founders={role: Founders([*files.values()], threshold) for role, files in made.items()},
        documents={KEYSET_PATH: keyring.keyset_bytes, ANCHORS_PATH: anchors},
        families_offline=families_offline,
    )
    return Founded(
        digest,
        {
            role: [signer.public_key.keyid for signer in files.values()]
            for role, files in made.items()
        },
        {role: [*files] for role, files in made.items()},
    )

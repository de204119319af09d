"""Releases that no device may go to any more, and families whose key changes.

A revoked release raises its model's release floor in the keyset above its own counter, so releases
with lower counters fall with it. The table is written first, and the keyset is made to follow it,
at the next start if need be. What runs is not touched: a device never loses its model by this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlmodel import Session
from tuf.api.metadata import TargetFile

from fleet_contract.manifest import FileRef, Manifest
from fleet_contract.trust.keyset import KEYSET_PATH, read_keyset
from fleet_server.errors import Conflict
from fleet_server.releases import service
from fleet_server.releases.records import ReleaseRecord
from fleet_server.releases.states import ReleaseState
from fleet_server.trust.catalogue import rotation
from fleet_server.trust.catalogue.repository import Catalogue, targets_of
from fleet_server.trust.catalogue.signers import HeldKey
from fleet_server.trust.keyring import Keyring

_KNOWN = (ReleaseState.STAGED, ReleaseState.UNSIGNED)


@dataclass(frozen=True, slots=True)
class Revoked:
    """What a revocation took out: the release itself and the older ones, by version."""

    model: str
    versions: list[str]
    floor: int


def revoke(session: Session, model: str, version: str, *, with_older: bool, now_ms: int) -> Revoked:
    """Revoke a release, and with it every older one of the model.

    Raises:
        NotFound: if there is no such release.
        Conflict: if it was never staged, or older ones would fall that nobody agreed to lose.
    """
    record = service.get(session, model, version)
    if record.state not in (*_KNOWN, ReleaseState.REVOKED):
        raise Conflict(
            "release_not_staged",
            f"{model} {version} is {record.state.value}: no device can have it.",
        )
    older = [
        item.version
        for item in service.of_model(session, model)
        if item.counter < record.counter and item.state in _KNOWN
    ]
    if older and not with_older:
        raise Conflict(
            "older_releases_fall",
            f"With {version} these older releases of {model} fall: {', '.join(older)}.",
            "Push those that you want to keep again under new versions first; then revoke with "
            "--with-older.",
        )
    fallen = [record.version, *older]
    service.mark_revoked(session, model, fallen, now_ms=now_ms)
    return Revoked(model, fallen, record.counter + 1)


def enforce(
    models: Mapping[str, Sequence[ReleaseRecord]], catalogue: Catalogue, keyring: Keyring
) -> bool:
    """Make the keyset and the repository say what the table says.

    Args:
        models: every model's releases; read before, since this signs and tells others.
        catalogue: the repository.
        keyring: whose keyset it is.

    Returns:
        Whether all of it is committed; False means that something waits for signatures.
    """
    done = True
    for model, records in models.items():
        counters = [item.counter for item in records if item.state is ReleaseState.REVOKED]
        coming = catalogue.coming_document(KEYSET_PATH) or keyring.keyset_bytes
        floors = read_keyset(coming, fleet=keyring.fleet, held=None).release_floors
        floor = max(counters, default=-1) + 1
        if floor > floors.get(model, 0):
            fresh = keyring.propose_floor(coming, model, floor)
            why = f"releases of {model} with a counter below {floor} are revoked"
            done = rotation.withdraw(catalogue, model, known(records), fresh, why) and done
    return done


def rotate_family(
    catalogue: Catalogue,
    model: str,
    records: Sequence[ReleaseRecord],
    keys: Sequence[HeldKey],
    threshold: int,
) -> bool:
    """Give a model's family other keys, which vouch for the releases of the table alone.

    What a thief of the old key has added is gone with it.
    """
    return rotation.rotate_family(catalogue, model, keys, threshold, known(records))


def known(records: Sequence[ReleaseRecord]) -> list[TargetFile]:
    """Return what the repository has to say about these releases of one model."""
    found: list[TargetFile] = []
    for record in records:
        if record.state in _KNOWN and record.manifest is not None and record.digest is not None:
            manifest = FileRef(record.digest, record.manifest_bytes)
            found += targets_of(record.model, manifest, _files(record.manifest))
    return found


def _files(manifest: Manifest) -> list[FileRef]:
    artifacts = [variant.artifact for variant in manifest.variants]
    return [*artifacts, manifest.golden.file, manifest.baseline]

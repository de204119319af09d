"""Which files of the store somebody may need: the rules by which nothing else may be collected.

Decides in favour of the file wherever something is unknown: a release that no table has, a manifest
that cannot be read, a model that is being staged. When the rest goes is in :mod:`.collector`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sqlmodel import Session

from fleet_contract import codec
from fleet_contract.errors import Refused
from fleet_contract.limits import MANIFEST_BYTES
from fleet_contract.manifest import Manifest, artifact_path, manifest_path
from fleet_server.deltas import service as deltas
from fleet_server.devices import service as devices
from fleet_server.releases import lifecycle
from fleet_server.releases import service as releases
from fleet_server.releases.records import ReleaseRecord
from fleet_server.releases.sealing import outputs
from fleet_server.releases.states import ReleaseState
from fleet_server.releases.store import Store, card_path, provenance_path
from fleet_server.rollouts import service as rollouts
from fleet_server.trust.catalogue.repository import Catalogue

SPENT = frozenset({ReleaseState.REVOKED, ReleaseState.REFUSED})
"""Releases in these states keep nothing by themselves; whoever runs one still does."""
PRODUCTION = 3
"""Releases of a model, the newest that a rollout completed, that stay to be returned to."""


@dataclass(slots=True)
class Need:
    """What is needed: paths of the store and of the patches, and models of which all is."""

    files: set[str] = field(default_factory=set)
    patches: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)

    def holds(self, path: str) -> bool:
        """Say whether a file of the store may be needed."""
        # artifacts/MODEL/DIGEST, manifests/MODEL/…, provenance/MODEL/…, cards/MODEL/…
        return path in self.files or path.split("/")[1] in self.models


def find_need(session: Session, fleet: str, catalogue: Catalogue, store: Store) -> Need:
    """Return what is needed now.

    Args:
        session: sees the releases, the rollouts, the devices and the patches.
        fleet: whose.
        catalogue: what is vouched for.
        store: to read manifests of releases that no table knows.
    """
    need = Need(files=set(catalogue.paths()))
    listed = [record for each in releases.models(session).values() for record in each]
    records = {(record.model, record.digest): record for record in listed}
    for record in listed:
        _keep_proof(need, record)
        if record.state is ReleaseState.STAGING:
            need.models.add(record.model)
        elif record.state not in SPENT:
            _keep_release(need, record.model, record.digest, records, store)
    for model, ready in lifecycle.kept_ready(session).items():
        for digest in ready:
            _keep_release(need, model, digest, records, store)
    used = devices.held_releases(session, fleet) | rollouts.needed_releases(
        session, fleet, completed=PRODUCTION
    )
    for model, digest in used:
        _keep_release(need, model, digest, records, store)
    _keep_patches(need, deltas.everything(session))
    return need


def _keep_proof(need: Need, record: ReleaseRecord) -> None:
    """What proves and describes a release stays as long as the release is written down."""
    proofs = [record.provenance, None if record.origin is None else record.origin.bundle]
    need.files.update(provenance_path(record.model, digest) for digest in proofs if digest)
    if record.card is not None:
        need.files.add(card_path(record.model, record.card))


def _keep_release(
    need: Need,
    model: str,
    digest: str | None,
    records: Mapping[tuple[str, str | None], ReleaseRecord],
    store: Store,
) -> None:
    if not digest:
        return
    record = records.get((model, digest))
    manifest = _read(store, model, digest) if record is None else record.manifest
    if manifest is not None:
        need.files.update(outputs(manifest, digest))
    elif record is None:
        # Somebody runs what is not known here: nothing of the model may go.
        need.models.add(model)


def _read(store: Store, model: str, digest: str) -> Manifest | None:
    found = store.find(manifest_path(model, digest))
    if found is None:
        return None
    try:
        with found.path.open("rb") as file:
            data = file.read(MANIFEST_BYTES + 1)
        return codec.decode_json(data, Manifest, limit_bytes=MANIFEST_BYTES)
    except (OSError, Refused):
        return None


def _keep_patches(need: Need, tried: Iterable[deltas.DeltaView]) -> None:
    need.patches.update(
        artifact_path(delta.model, delta.patch_digest) for delta in tried if delta.patch_digest
    )

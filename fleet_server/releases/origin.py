"""Where a release comes from, as it is proven: the statement of its making, read and compared.

Decides what is found of a statement: whether a key that is believed signed it, and whether it names
the very files of the release. How it is written is in :mod:`fleet_server.releases.sealing`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from fleet_contract.errors import Reason, Refused
from fleet_server.errors import NotFound
from fleet_server.provenance import statement
from fleet_server.releases.records import ReleaseRecord
from fleet_server.releases.sealing import outputs
from fleet_server.releases.store import Store


class Signature(StrEnum):
    """Whose signature a statement has.

    ``FORMER`` is by a key that does not sign any more: then its digest, written down at staging and
    in the audit, is what speaks for it.
    """

    BELIEVED = "believed"
    FORMER = "former"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Proof:
    """A statement and what is wrong with it, in sentences; ``findings`` is empty if nothing is."""

    digest: str
    envelope: bytes
    signature: Signature
    findings: list[str]


def prove(record: ReleaseRecord, store: Store, keys: Mapping[str, bytes]) -> Proof:
    """Read the statement of a release and compare it with what is known of the release.

    Args:
        record: the release.
        store: where the statement lies.
        keys: key id → raw public key, those that are believed now.

    Raises:
        NotFound: if the release has none: it is not staged yet, or older than such statements; or
            if the store has lost it.
    """
    if record.provenance is None or record.manifest is None:
        raise NotFound(
            "no_provenance",
            f"{record.model} {record.version} has no statement of its origin.",
            "A release gets one when it is staged; push it again under a new version.",
        )
    data = store.read_provenance(record.model, record.provenance)
    if data is None:
        raise NotFound(
            "provenance_lost",
            f"The statement of {record.model} {record.version} is gone, or is not what was stored.",
            "Restore the store from a backup; the audit has its digest.",
        )
    inputs = {"model": record.upload.source_digest}
    if record.manifest.lineage.calibration is not None:
        inputs["calibration"] = record.manifest.lineage.calibration
    try:
        signature = Signature.BELIEVED
        try:
            stated = statement.open_sealed(data, keys)
        except Refused as refused:
            if refused.reason is not Reason.UNKNOWN_KEY:
                raise
            signature = Signature.FORMER
            stated = statement.read_unproven(data)
    except Refused as refused:
        return Proof(record.provenance, data, Signature.WRONG, [refused.detail])
    files = outputs(record.manifest, record.digest or "")
    findings = statement.differences(stated, inputs, files)
    return Proof(record.provenance, data, signature, findings)

"""Mutants of the checks on what exists: the metadata, and the files that they vouch for.

The checks of the metadata are python-tuf's; that they are really in the way of the agent's own
fetch code is what these mutants show. When python-tuf changes one of them, the harness says so.
"""

from __future__ import annotations

from tests.attacks.mutants import Mutant

METADATA_SET = "tuf.ngclient._internal.trusted_metadata_set"
PAYLOAD = "tuf.api._payload"
CATALOGUE = "device_agent.shell.catalogue"
DOWNLOAD = "device_agent.shell.download"
RELEASE_FILES = "device_agent.shell.release_files"
ARTIFACT_FILE = "device_agent.inference.artifact_file"

NO = "if False:"

METADATA = [
    Mutant("signature: at all", PAYLOAD, "_DelegatorMixin.verify_delegate", "if not result:", NO),
    Mutant(
        "signature: threshold",
        PAYLOAD,
        "_DelegatorMixin.get_verification_result",
        "VerificationResult(role.threshold, signed, unsigned)",
        "VerificationResult(1, signed, unsigned)",
    ),
    Mutant(
        "signature: new root by itself",
        METADATA_SET,
        "TrustedMetadataSet.update_root",
        "new_root.verify_delegate(Root.type, new_root_bytes, new_root_signatures)",
        "pass",
    ),
    Mutant(
        "version: next root",
        METADATA_SET,
        "TrustedMetadataSet.update_root",
        "if new_root.version != self.root.version + 1:",
        NO,
    ),
    Mutant(
        "version: timestamp",
        METADATA_SET,
        "TrustedMetadataSet.update_timestamp",
        "if new_timestamp.version < self.timestamp.version:",
        NO,
    ),
    Mutant(
        "version: snapshot, as the timestamp names it",
        METADATA_SET,
        "TrustedMetadataSet.update_timestamp",
        "if new_snapshot_meta.version < snapshot_meta.version:",
        NO,
    ),
    Mutant(
        "version: snapshot is the one named",
        METADATA_SET,
        "TrustedMetadataSet._check_final_snapshot",
        "if self.snapshot.version != snapshot_meta.version:",
        NO,
    ),
    Mutant(
        "version: targets, as the snapshot names them",
        METADATA_SET,
        "TrustedMetadataSet.update_snapshot",
        "if new_fileinfo.version < fileinfo.version:",
        NO,
    ),
    Mutant(
        "version: no role is left out",
        METADATA_SET,
        "TrustedMetadataSet.update_snapshot",
        "new_snapshot.meta.get(filename)",
        "new_snapshot.meta.get(filename, fileinfo)",
    ),
    Mutant(
        "version: targets are the ones named",
        METADATA_SET,
        "TrustedMetadataSet.update_delegated_targets",
        "if version != meta.version:",
        NO,
    ),
    Mutant(
        "expiry: root",
        METADATA_SET,
        "TrustedMetadataSet.update_timestamp",
        "if self.root.is_expired(self.reference_time):",
        NO,
    ),
    Mutant(
        "expiry: timestamp",
        METADATA_SET,
        "TrustedMetadataSet._check_final_timestamp",
        "if self.timestamp.is_expired(self.reference_time):",
        NO,
    ),
    Mutant(
        "expiry: snapshot",
        METADATA_SET,
        "TrustedMetadataSet._check_final_snapshot",
        "if self.snapshot.is_expired(self.reference_time):",
        NO,
    ),
    Mutant(
        "expiry: targets",
        METADATA_SET,
        "TrustedMetadataSet.update_delegated_targets",
        "if new_delegate.is_expired(self.reference_time):",
        NO,
    ),
    Mutant(
        "expiry: time floor",
        CATALOGUE,
        "Catalogue.refreshed",
        "max(self._clock.now_ms(), time_floor_ms)",
        "self._clock.now_ms()",
    ),
    Mutant(
        "target: size cap of a manifest",
        RELEASE_FILES,
        "fetch_release",
        "if target.size_bytes > limits.MANIFEST_BYTES:",
        NO,
    ),
    Mutant("target: length", CATALOGUE, "check", "if len(data) != size_bytes:", NO),
    Mutant("target: hash", CATALOGUE, "check", "hashlib.sha256(data).hexdigest() != digest", "0"),
    Mutant(
        "target: length of a download",
        DOWNLOAD,
        "_fill_by",
        "if have + len(piece) > file.size_bytes:",
        NO,
    ),
    Mutant(
        "target: length of a download, as announced",
        DOWNLOAD,
        "_check_head",
        "if length is not None and length > left:",
        NO,
    ),
    Mutant("target: hash of a download", DOWNLOAD, "_fill_by", "if not hashes.right():", NO),
    Mutant(
        "target: length that the manifest says",
        RELEASE_FILES,
        "_vouched",
        "if target.size_bytes != file.size_bytes:",
        NO,
    ),
    Mutant(
        "target: hash that the manifest says",
        RELEASE_FILES,
        "_vouched",
        'if target.hashes.get("sha256") != file.digest:',
        NO,
    ),
    Mutant(
        "target: model that the manifest says",
        "fleet_contract.manifest",
        "read_manifest",
        "if manifest.model != model:",
        NO,
    ),
    Mutant(
        "loading: hash of what is loaded",
        ARTIFACT_FILE,
        "read_verified",
        "if hashlib.sha256(data).hexdigest() != expected.digest:",
        NO,
    ),
    Mutant(
        "loading: no link is followed",
        ARTIFACT_FILE,
        "read_verified",
        "os.O_RDONLY | os.O_NOFOLLOW",
        "os.O_RDONLY",
    ),
    Mutant(
        "storing: what has another name is not written into",
        "device_agent.shell.flash",
        "open_alone",
        "status.st_nlink != 1:",
        "False:",
    ),
]

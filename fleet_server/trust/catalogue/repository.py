"""How the repository of what exists changes: roles edited, signed, and shown to the world at once.

Top-level targets vouch for the keyset and delegate each model to a role of its own; that role only
spreads the model's files over bins by the hash of their path. So what a device fetches for one
release is a few bins, whatever else exists. The order of writing makes every change one: roles,
then the snapshot that names them, then the timestamp that names the snapshot. Whoever is killed in
between has changed nothing, and what was left is swept away.

Versions of targets metadata are numbers of one sequence: no two files of whatever roles share one.
A model's key signs all of its bins, and nothing in a file says which role it is of: with a version
in common, a mirror could show one bin in the place of another.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from datetime import datetime

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

from fleet_contract.manifest import FileRef, artifact_path, manifest_path
from fleet_server.trust.catalogue.committed import (
    Lifetimes,
    Shown,
    expiry,
    highest_version,
    load,
    sign,
)
from fleet_server.trust.catalogue.files import CatalogueFiles, parse
from fleet_server.trust.catalogue.signers import Signers

BIN_BITS = 4
"""16 bins a model: with 100 releases of a model, a bin takes about 6 KiB (see the benchmark)."""
RENEWED_AT = 0.5
"""A role is signed anew when less than this share of its lifetime is left."""


class Catalogue:
    """The repository of one server. Thread-safe."""

    def __init__(
        self,
        files: CatalogueFiles,
        signers: Signers,
        shown: Shown,
        now_ms: Callable[[], int],
        lifetimes: Lifetimes,
        *,
        made_now: bool,
    ) -> None:
        self.made_now = made_now
        self._files = files
        self._signers = signers
        self._shown = shown
        self._now_ms = now_ms
        self._lifetimes = lifetimes
        self._lock = threading.RLock()
        # Counts every file that was ever written, also those of changes that failed.
        self._highest = highest_version(shown)
        self._roots: dict[str, bytes] = {}

    # --- what the world asks for ----------------------------------------------------------------

    @property
    def root_digest(self) -> str:
        """SHA-256 of the present root's file: what an enrolment token carries."""
        version = self._shown.root.signed.version
        return hashlib.sha256(self._files.read(f"{version}.root.json")).hexdigest()

    @property
    def holds_root_key(self) -> bool:
        """Whether who reads this server's disk can replace the root."""
        return self._signers.can_sign("root")

    def root_by_digest(self, digest: str) -> bytes | None:
        """Return the root, of whatever age, that has this hash."""
        with self._lock:
            for version in range(len(self._roots) + 1, self._shown.root.signed.version + 1):
                data = self._files.read(f"{version}.root.json")
                self._roots[hashlib.sha256(data).hexdigest()] = data
            return self._roots.get(digest)

    def read(self, name: str) -> bytes | None:
        """Return a metadata file that is part of what is committed, None for any other name."""
        shown = self._shown
        if name == "timestamp.json":
            return shown.timestamp_bytes
        named = parse(name)
        if named is None or named[1] > self._newest(shown, named[0]):
            return None
        try:
            return self._files.read(name)
        except OSError:
            return None

    def read_target(self, name: str) -> bytes | None:
        """Return a file that the top-level role vouches for, by its hash and name."""
        return self._files.read_target(name)

    def versions(self) -> dict[str, int]:
        """Return the present version of every role."""
        shown = self._shown
        delegated = {
            name.removesuffix(".json"): meta.version
            for name, meta in shown.snapshot.signed.meta.items()
        }
        return {
            "root": shown.root.signed.version,
            "timestamp": shown.timestamp.signed.version,
            "snapshot": shown.snapshot.signed.version,
            **delegated,
        }

    # --- changes --------------------------------------------------------------------------------

    def publish(self, model: str, manifest: FileRef, files: Sequence[FileRef]) -> None:
        """Vouch for a release: its manifest and every file that the manifest names.

        Publishing what is there already changes nothing.

        Raises:
            Unavailable: if a key that is needed is not on this server.
            OSError: if the metadata cannot be written; then nothing was published.
        """
        targets = [
            _target(manifest_path(model, manifest.digest), manifest),
            *(_target(artifact_path(model, file.digest), file) for file in files),
        ]
        with self._lock:
            changed: dict[str, Targets] = {}
            family = f"model.{model}"
            if not self._exists(family):
                self._add_family(model, family, changed)
            bins = _bins(model, self._signers.public_keys(family)[0].keyid)
            for target in targets:
                name = bins.get_role_for_target(target.path)
                role = changed.get(name) or (self._role(name) if self._exists(name) else Targets())
                if role.targets.get(target.path) != target:
                    role.targets[target.path] = target
                    changed[name] = role
            self._commit(changed)

    def publish_document(self, path: str, document: bytes) -> None:
        """Vouch for a document of the fleet's, the keyset or the anchors, unless this very one is
        vouched for already.

        Raises:
            Unavailable: if the key of the top-level targets is not on this server.
            OSError: if it cannot be written.
        """
        digest = hashlib.sha256(document).hexdigest()
        target = _target(path, FileRef(digest, len(document)))
        with self._lock:
            role = self._role("targets")
            if role.targets.get(path) == target:
                return
            self._files.write_target(f"{digest}.{path}", document)
            role.targets[path] = target
            self._commit({"targets": role})

    def renew(self) -> list[str]:
        """Sign anew whatever has less than half of its lifetime left.

        Returns:
            The roles that should have been signed anew, but whose key is not on this server.

        Raises:
            OSError: if it cannot be written.
        """
        with self._lock:
            offline: list[str] = []
            shown = self._shown
            if self._is_old(shown.root.signed, self._lifetimes.root_ms):
                if self._signers.can_sign("root"):
                    self._renew_root()
                else:
                    offline.append("root")
            changed: dict[str, Targets] = {}
            for name in shown.snapshot.signed.meta:
                role = self._role(name.removesuffix(".json"))
                if self._is_old(role, self._lifetimes.targets_ms):
                    own = name.removesuffix(".json")
                    if self._signers.can_sign(_signing_role(own)):
                        changed[own] = role
                    else:
                        offline.append(own)
            snapshot_is_old = self._is_old(shown.snapshot.signed, self._lifetimes.snapshot_ms)
            self._commit(changed, anyway=snapshot_is_old)
            timestamp = self._shown.timestamp
            if self._is_old(timestamp.signed, self._lifetimes.timestamp_ms):
                self._commit_timestamp(self._shown.snapshot)
            return offline

    # --- how ------------------------------------------------------------------------------------

    def _add_family(self, model: str, family: str, changed: dict[str, Targets]) -> None:
        if not self._signers.knows(family):
            self._signers.create(family)
        key = self._signers.public_keys(family)[0]
        top = self._role("targets")
        delegations = top.delegations or Delegations({}, {})
        delegations.keys[key.keyid] = key
        assert delegations.roles is not None
        # Terminating: nobody after it has a say about a model's files.
        delegations.roles[family] = DelegatedRole(
            family,
            [key.keyid],
            1,
            True,
            [manifest_path(model, "*"), artifact_path(model, "*")],
        )
        top.delegations = delegations
        changed["targets"] = top
        changed[family] = Targets(
            delegations=Delegations({key.keyid: key}, succinct_roles=_bins(model, key.keyid))
        )

    def _exists(self, role: str) -> bool:
        return f"{role}.json" in self._shown.snapshot.signed.meta

    def _role(self, role: str) -> Targets:
        """Return a fresh copy of a role as committed."""
        version = self._shown.snapshot.signed.meta[f"{role}.json"].version
        return Metadata[Targets].from_bytes(self._files.read(f"{version}.{role}.json")).signed

    def _is_old(self, signed: Signed, lifetime_ms: int) -> bool:
        left_ms = signed.expires.timestamp() * 1000 - self._now_ms()
        return left_ms < lifetime_ms * RENEWED_AT

    def _renew_root(self) -> None:
        root = self._shown.root.signed
        fresh = Root.from_dict(root.to_dict())
        fresh.version += 1
        fresh.expires = self._expiry(self._lifetimes.root_ms)
        metadata = Metadata(fresh)
        data = sign(metadata, self._signers, "root")
        self._files.write(f"{fresh.version}.root.json", data)
        shown = self._shown
        self._shown = Shown(metadata, shown.snapshot, shown.timestamp, shown.timestamp_bytes)

    def _commit(self, changed: dict[str, Targets], *, anyway: bool = False) -> None:
        if not changed and not anyway:
            return
        old = self._shown.snapshot.signed
        meta = dict(old.meta)
        for role, signed in changed.items():
            self._highest += 1
            signed.version = self._highest
            signed.expires = self._expiry(self._lifetimes.targets_ms)
            data = sign(Metadata(signed), self._signers, _signing_role(role))
            self._files.write(f"{signed.version}.{role}.json", data)
            meta[f"{role}.json"] = MetaFile(signed.version)
        snapshot = Metadata(
            Snapshot(
                version=old.version + 1,
                expires=self._expiry(self._lifetimes.snapshot_ms),
                meta=meta,
            )
        )
        data = sign(snapshot, self._signers, "snapshot")
        self._files.write(f"{snapshot.signed.version}.snapshot.json", data)
        self._commit_timestamp(snapshot)
        for role in ("snapshot", *changed):
            self._files.prune(role)

    def _commit_timestamp(self, snapshot: Metadata[Snapshot]) -> None:
        timestamp = Metadata(
            Timestamp(
                version=self._shown.timestamp.signed.version + 1,
                expires=self._expiry(self._lifetimes.timestamp_ms),
                snapshot_meta=MetaFile(snapshot.signed.version),
            )
        )
        data = sign(timestamp, self._signers, "timestamp")
        try:
            self._files.write("timestamp.json", data)
        except OSError:
            # Whether it took effect is for the disk to say.
            self._shown = load(self._files)
            raise
        self._shown = Shown(self._shown.root, snapshot, timestamp, data)

    def _expiry(self, lifetime_ms: int) -> datetime:
        return expiry(self._now_ms() + lifetime_ms)

    @staticmethod
    def _newest(shown: Shown, role: str) -> int:
        if role == "root":
            return shown.root.signed.version
        if role == "snapshot":
            return shown.snapshot.signed.version
        meta = shown.snapshot.signed.meta.get(f"{role}.json")
        return meta.version if meta is not None else 0


def _signing_role(role: str) -> str:
    """Return the role whose key signs a role: a model's bins are signed by the model's key."""
    if role.startswith("bin."):
        return f"model.{role.removeprefix('bin.').rpartition('-')[0]}"
    return role


def _bins(model: str, keyid: str) -> SuccinctRoles:
    return SuccinctRoles([keyid], 1, BIN_BITS, f"bin.{model}")


def _target(path: str, file: FileRef) -> TargetFile:
    return TargetFile(file.size_bytes, {"sha256": file.digest}, path)

"""The repository of what exists: what the world reads of it, and how releases come into it.

Top-level targets vouch for the keyset and delegate each model to a role of its own; that role only
spreads the model's files over bins by the hash of their path. So what a device fetches for one
release is a few bins, whatever else exists. How a change is signed and shown is decided in
:mod:`fleet_server.trust.catalogue.changing`, which keys a role has in :mod:`.rotation`.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Root,
    Signed,
    SuccinctRoles,
    TargetFile,
    Targets,
)

from fleet_contract.manifest import FileRef, artifact_path, manifest_path
from fleet_contract.trust.keyset import KEYSET_PATH
from fleet_server.errors import Unavailable
from fleet_server.trust.catalogue.changing import Change, Changes
from fleet_server.trust.catalogue.committed import Shown
from fleet_server.trust.catalogue.files import parse
from fleet_server.trust.catalogue.proposals import signing_role
from fleet_server.trust.catalogue.signers import HeldKey

BIN_BITS = 4
"""16 bins a model: with 100 releases of a model, a bin takes about 6 KiB (see the benchmark)."""
RENEWED_AT = 0.5
"""A role is signed anew when less than this share of its lifetime is left."""
FAMILIES = "model.*"
"""Stands among the signers, without a key, where new families must bring their own."""


class Catalogue:
    """The repository of one server. Thread-safe.

    Attributes:
        changes: what is committed and what waits; for those who rotate keys.
        followed: called after whatever may matter to others was committed: the root, the keyset,
            or what had waited for a signature. Never under the lock.
    """

    def __init__(self, changes: Changes, *, made_now: bool) -> None:
        self.made_now = made_now
        self.changes = changes
        self.followed: Callable[[], None] = lambda: None
        self._owes = False
        self._roots: dict[str, bytes] = {}

    # --- what the world asks for ----------------------------------------------------------------

    @property
    def root_digest(self) -> str:
        """SHA-256 of the present root's file: what an enrolment token carries."""
        return hashlib.sha256(self.root_bytes).hexdigest()

    @property
    def root_bytes(self) -> bytes:
        """The present root's file."""
        version = self.changes.shown.root.signed.version
        return self.changes.files.read(f"{version}.root.json")

    @property
    def holds_root_key(self) -> bool:
        """Whether who reads this server's disk can replace the root."""
        needed: int = self.changes.shown.root.signed.roles["root"].threshold
        return sum(bool(key.uri) for key in self.changes.signers.held("root")) >= needed

    def root_by_digest(self, digest: str) -> bytes | None:
        """Return the root, of whatever age, that has this hash."""
        with self.changes.lock:
            newest = self.changes.shown.root.signed.version
            for version in range(len(self._roots) + 1, newest + 1):
                data = self.changes.files.read(f"{version}.root.json")
                self._roots[hashlib.sha256(data).hexdigest()] = data
            return self._roots.get(digest)

    def read(self, name: str) -> bytes | None:
        """Return a metadata file that is part of what is committed, None for any other name."""
        shown = self.changes.shown
        if name == "timestamp.json":
            return shown.timestamp_bytes
        named = parse(name)
        if named is None or named[1] > self._newest(shown, named[0]):
            return None
        try:
            return self.changes.files.read(name)
        except OSError:
            return None

    def read_target(self, name: str) -> bytes | None:
        """Return a file that the top-level role vouches for, by its hash and name."""
        return self.changes.files.read_target(name)

    def document(self, path: str) -> bytes | None:
        """Return the committed document of this path, None if nothing is vouched for there."""
        with self.changes.lock:
            target = self.changes.committed("targets").targets.get(path)
            if target is None:
                return None
            return self.changes.files.read_target(f"{target.hashes['sha256']}.{path}")

    def coming_document(self, path: str) -> bytes | None:
        """Return the document of this path that waits for signatures, or the committed one."""
        with self.changes.lock:
            for proposal in self.changes.pending.values():
                if path in proposal.documents:
                    return proposal.documents[path]
            return self.document(path)

    def waiting(self) -> list[str]:
        """Return the roles whose next version waits for a signature."""
        with self.changes.lock:
            return sorted({role for item in self.changes.pending.values() for role in item.files})

    def vouches(self, model: str, path: str) -> bool:
        """Say whether a file of a model is part of what is committed."""
        with self.changes.lock:
            name = bin_of(model, path)
            if f"{name}.json" not in self.changes.shown.snapshot.signed.meta:
                return False
            return path in self.changes.committed(name).targets

    def paths(self) -> list[str]:
        """Return every file that a committed role vouches for."""
        with self.changes.lock:
            names = [name.removesuffix(".json") for name in self.changes.shown.snapshot.signed.meta]
            return [path for name in names for path in self.changes.committed(name).targets]

    def versions(self) -> dict[str, int]:
        """Return the present version of every role."""
        shown = self.changes.shown
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

    def publish(self, model: str, manifest: FileRef, files: Sequence[FileRef]) -> bool:
        """Vouch for a release: its manifest and every file that the manifest names.

        Publishing what is there already changes nothing.

        Returns:
            Whether it is committed: False means that it waits for signatures.

        Raises:
            Unavailable: if nobody knows the model's key, or one that should be here is unusable.
            OSError: if the metadata cannot be written; then nothing was published.
        """
        with self.changes.lock:
            changed: dict[str, Root | Targets] = {}
            signers: dict[str, list[HeldKey]] = {}
            family = f"model.{model}"
            if not self.changes.exists(family):
                signers[family] = self._add_family(model, family, changed)
            for target in targets_of(model, manifest, files):
                name = bin_of(model, target.path)
                role = changed.get(name)
                if role is None:
                    role = self.changes.role(name) if self.changes.exists(name) else Targets()
                assert isinstance(role, Targets)
                if role.targets.get(target.path) != target:
                    role.targets[target.path] = target
                    changed[name] = role
            if changed:
                why = f"release {manifest.digest[:12]} of {model}"
                return self.changes.change(Change(why, changed, signers=signers))
            return self.vouches(model, manifest_path(model, manifest.digest))

    def publish_document(self, path: str, data: bytes, *, why: str = "") -> bool:
        """Vouch for a document, unless it is the one that is vouched for already.

        Returns:
            Whether it is committed: False means that it waits for signatures.

        Raises:
            OSError: if it cannot be written.
        """
        target = _target(path, FileRef(hashlib.sha256(data).hexdigest(), len(data)))
        with self.changes.lock:
            if self.changes.committed("targets").targets.get(path) == target:
                return True
            role = self.changes.role("targets")
            if role.targets.get(path) == target:
                return False
            role.targets[path] = target
            change = Change(why or f"a new {path}", {"targets": role}, documents={path: data})
            done = self.changes.change(change)
        if done:
            self.follow()
        return done

    def add_signatures(self, proposal: str, signatures: list[tuple[str, str, str]]) -> bool:
        """Add (role, key id, signature) to what waits; see :meth:`.Changes.add_signatures`."""
        with self.changes.lock:
            done = self.changes.add_signatures(proposal, signatures)
        if done:
            self.follow()
        return done

    def follow(self) -> None:
        """Have done what follows from what is committed; if that fails, :meth:`renew` does it."""
        self._owes = True
        self.followed()
        self._owes = False

    def renew(self) -> list[str]:
        """Sign anew whatever has less than half of its lifetime left.

        Returns:
            The roles that should have been signed anew, and wait for a key that is elsewhere.

        Raises:
            OSError: if it cannot be written.
        """
        changes, lifetimes = self.changes, self.changes.lifetimes
        with changes.lock:
            done = changes.finish()
            shown, old = changes.shown, dict[str, Root | Targets]()
            waiting = self.waiting()
            if self._is_old(shown.root.signed, lifetimes.root_ms) and "root" not in waiting:
                old["root"] = changes.root()
            for name in shown.snapshot.signed.meta:
                own = name.removesuffix(".json")
                role = changes.committed(own)
                if self._is_old(role, lifetimes.targets_ms) and own not in waiting:
                    old[own] = role
            offline = sorted(waiting)
            # What can be signed here must not wait for what cannot.
            here = {own: signed for own, signed in old.items() if self.signs_alone(own)}
            if here:
                changes.change(Change("what expires is signed anew", here))
                done = done or "root" in here
            for own, signed in old.items():
                if own not in here:
                    offline.append(own)
                    changes.change(Change(f"{own} expires, and is signed anew", {own: signed}))
            if self._is_old(changes.shown.snapshot.signed, lifetimes.snapshot_ms):
                changes.show_again()
            if self._is_old(changes.shown.timestamp.signed, lifetimes.timestamp_ms):
                changes.show_timestamp()
        if done or self._owes:
            self.follow()
        return offline

    def signs_alone(self, role: str) -> bool:
        """Say whether what is committed can be signed anew here, by keys of this server alone."""
        owner, threshold = signing_role(role), 1
        delegations = self.changes.committed("targets").delegations
        if owner in self.changes.shown.root.signed.roles:
            threshold = self.changes.shown.root.signed.roles[owner].threshold
        elif delegations is not None and delegations.roles and owner in delegations.roles:
            threshold = delegations.roles[owner].threshold
        return sum(bool(key.uri) for key in self.changes.signers.held(owner)) >= threshold

    # --- how ------------------------------------------------------------------------------------

    def _add_family(
        self, model: str, family: str, changed: dict[str, Root | Targets]
    ) -> list[HeldKey]:
        signers = self.changes.signers
        keys = signers.held(family)
        if not keys:
            if signers.knows(FAMILIES):
                raise Unavailable(
                    "family_unknown",
                    f"Nobody has said who may sign {model}.",
                    f"Give the team's public key: edgefleet trust rotate family {model} "
                    "--public FILE; then push again.",
                )
            keys = [signers.make_key(family)]
        top = self.changes.role("targets")
        delegate_family(top, model, keys, 1)
        changed["targets"] = top
        changed[family] = family_role(model, keys, 1)
        return keys

    def _is_old(self, signed: Signed, lifetime_ms: int) -> bool:
        left_ms = signed.expires.timestamp() * 1000 - self.changes.now_ms()
        return left_ms < lifetime_ms * RENEWED_AT

    @staticmethod
    def _newest(shown: Shown, role: str) -> int:
        if role == "root":
            return shown.root.signed.version
        if role == "snapshot":
            return shown.snapshot.signed.version
        meta = shown.snapshot.signed.meta.get(f"{role}.json")
        return meta.version if meta is not None else 0


def delegate_family(top: Targets, model: str, keys: Sequence[HeldKey], threshold: int) -> None:
    """Make these the keys of a model's role."""
    family = f"model.{model}"
    delegations = top.delegations = top.delegations or Delegations({}, {})
    assert delegations.roles is not None
    for keyid in list(delegations.roles[family].keyids if family in delegations.roles else ()):
        top.revoke_key(keyid, family)
    # Terminating: nobody after it has a say about a model's files.
    delegations.roles[family] = DelegatedRole(
        family, [], threshold, True, [manifest_path(model, "*"), artifact_path(model, "*")]
    )
    for key in keys:
        top.add_key(key.key(), family)


def family_role(model: str, keys: Sequence[HeldKey], threshold: int) -> Targets:
    """Return a model's role: it says nothing itself and spreads the model's files over bins."""
    public = {key.keyid: key.key() for key in keys}
    bins = SuccinctRoles(list(public), threshold, BIN_BITS, f"bin.{model}")
    return Targets(delegations=Delegations(public, succinct_roles=bins))


def bin_of(model: str, path: str) -> str:
    """Return the name of the bin that speaks about a path."""
    name: str = SuccinctRoles([], 1, BIN_BITS, f"bin.{model}").get_role_for_target(path)
    return name


def targets_of(model: str, manifest: FileRef, files: Iterable[FileRef]) -> list[TargetFile]:
    """Return what the repository says about the files of a release."""
    return [
        _target(manifest_path(model, manifest.digest), manifest),
        *(_target(artifact_path(model, file.digest), file) for file in files),
    ]


def keyset_target(data: bytes) -> TargetFile:
    """Return what the repository says about a keyset."""
    return _target(KEYSET_PATH, FileRef(hashlib.sha256(data).hexdigest(), len(data)))


def _target(path: str, file: FileRef) -> TargetFile:
    return TargetFile(file.size_bytes, {"sha256": file.digest}, path)

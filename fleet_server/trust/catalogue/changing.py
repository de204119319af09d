"""How a change of the repository happens: signed where that is possible, and shown as one.

A change whose signatures can all be made here is committed at once. Any other becomes a proposal,
and is committed when its last signature comes. The order of writing makes every change one: roles,
then the snapshot that names them, then the timestamp that names the snapshot; whoever is killed in
between has changed nothing, and what was left is swept away. A change of the root or of keys cannot
be ordered so: it is kept as a proposal that has all its signatures before the first file is
written, and carried out again at the next start.

Versions of targets metadata are numbers of one sequence: no two files of whatever roles share one.
A model's key signs all of its bins, and nothing in a file says which role it is of: with a version
in common, a mirror could show one bin in the place of another.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuf.api.metadata import Metadata, MetaFile, Root, Signature, Snapshot, Targets, Timestamp

from fleet_server.errors import Invalid, NotFound
from fleet_server.trust.catalogue import approval
from fleet_server.trust.catalogue.approval import Need
from fleet_server.trust.catalogue.committed import (
    Lifetimes,
    Shown,
    expiry,
    highest_version,
    load,
    sign,
    to_bytes,
)
from fleet_server.trust.catalogue.files import CatalogueFiles
from fleet_server.trust.catalogue.proposals import (
    Proposal,
    ProposalFiles,
    group_of,
    identity,
    plain_form,
    signing_role,
)
from fleet_server.trust.catalogue.signers import HeldKey, Signers


@dataclass(frozen=True, slots=True)
class Change:
    """What shall be different: roles, documents that targets vouches for, keys of roles.

    ``earlier`` are complete roots that come before the one in ``files``, in order.
    """

    why: str
    files: Mapping[str, Root | Targets]
    documents: Mapping[str, bytes] = field(default_factory=dict)
    signers: Mapping[str, list[HeldKey]] = field(default_factory=dict)
    earlier: Sequence[Metadata[Root]] = ()


class Changes:
    """What is committed and what waits. Whoever edits holds ``lock`` from reading to changing."""

    def __init__(
        self,
        files: CatalogueFiles,
        signers: Signers,
        proposals: ProposalFiles,
        shown: Shown,
        now_ms: Callable[[], int],
        lifetimes: Lifetimes,
    ) -> None:
        self.files = files
        self.signers = signers
        self.shown = shown
        self.now_ms = now_ms
        self.lifetimes = lifetimes
        self.lock = threading.RLock()
        self._proposals = proposals
        self.pending = proposals.load()
        # Counts every file that was ever made, also those of changes that wait or failed.
        waiting = [
            metadata.signed.version
            for proposal in self.pending.values()
            for role, metadata in proposal.metadata().items()
            if role != "root"
        ]
        self._highest = max([highest_version(shown), *waiting])
        self._least: dict[str, int] = {}

    # --- reading --------------------------------------------------------------------------------

    def exists(self, role: str) -> bool:
        """Say whether a role of targets metadata is committed or waits for that."""
        waits = any(role in proposal.files for proposal in self.pending.values())
        return waits or f"{role}.json" in self.shown.snapshot.signed.meta

    def role(self, role: str) -> Targets:
        """Return a fresh copy of a role as it will be when all that waits is committed."""
        for proposal in self.pending.values():
            if role in proposal.files:
                signed: Targets = proposal.metadata()[role].signed
                return signed
        return self.committed(role)

    def committed(self, role: str) -> Targets:
        """Return a fresh copy of a role as committed."""
        version = self.shown.snapshot.signed.meta[f"{role}.json"].version
        return Metadata[Targets].from_bytes(self.files.read(f"{version}.{role}.json")).signed

    def signed_bytes(self, role: str, version: int) -> bytes:
        """Return what was signed of a committed version. Raises OSError."""
        data = self.files.read(f"{version}.{role}.json")
        signed: bytes = Metadata[Targets].from_bytes(data).signed_bytes
        return signed

    def root(self) -> Root:
        """Return a fresh copy of the next root: the one that waits, or the present one."""
        for proposal in self.pending.values():
            if "root" in proposal.files:
                waiting: Root = proposal.metadata()["root"].signed
                return waiting
        # From bytes: what python-tuf makes of its own dictionaries shares their lists.
        version = self.shown.root.signed.version
        return Metadata[Root].from_bytes(self.files.read(f"{version}.root.json")).signed

    def keys(self, role: str) -> list[HeldKey]:
        """Return the keys that a role will have when all that waits is committed."""
        for proposal in self.pending.values():
            if role in proposal.signers:
                return list(proposal.signers[role])
        return self.signers.held(role)

    def needs(self, proposal: Proposal) -> list[Need]:
        """Return whose signatures a proposal needs."""
        return approval.needs(proposal.metadata(), self._after(proposal.earlier_roots()))

    def followed_root(self) -> Root:
        """Return the root that the next one follows: the present one, or one that waits to come
        before it.
        """
        return self._last_of(self._earlier(self.pending.values())).signed

    # --- changing -------------------------------------------------------------------------------

    def change(self, change: Change) -> bool:
        """Make a change, or propose it; what waits and touches the same is taken in.

        Returns:
            Whether it is committed: False means that it waits for signatures.

        Raises:
            Unavailable: if a key that should be here cannot be used.
            OSError: if it cannot be written; then nothing was changed.
        """
        files = {
            role: self._next(role, signed, change.earlier) for role, signed in change.files.items()
        }
        return self._propose(change, files)

    def take(self, root: Metadata[Root], why: str, signers: Mapping[str, list[HeldKey]]) -> bool:
        """Take a root that was made and signed elsewhere, as it is; as :meth:`change`."""
        change = Change(why, {"root": root.signed}, signers=signers)
        return self._propose(change, {"root": root})

    def _propose(self, change: Change, files: Mapping[str, Metadata[Any]]) -> bool:
        groups = {group_of(role) for role in files}
        taken: list[Proposal] = []
        while more := [
            item for item in self.pending.values() if item not in taken and groups & item.groups()
        ]:
            taken += more
            groups.update(*(item.groups() for item in more))
        merged: dict[str, Metadata[Any]] = {}
        for item in taken:
            merged.update(item.metadata())
        merged.update(files)
        signers = {name: keys for item in taken for name, keys in item.signers.items()}
        signers.update(change.signers)
        earlier = change.earlier or self._earlier(taken)
        after = self._after(earlier)
        self._sign(merged, signers, after)
        missing = any(need.missing for need in approval.needs(merged, after))
        if not (missing or taken or "root" in merged or signers):
            self._write(merged, change.documents)
            self._show(merged)
            return True
        documents = {name: data for item in taken for name, data in item.documents.items()}
        plain = {role: plain_form(metadata) for role, metadata in merged.items()}
        proposal = Proposal(
            id=identity(plain),
            made_ms=self.now_ms(),
            why=[*(line for item in taken for line in item.why), change.why],
            files=plain,
            documents={**documents, **change.documents},
            signers=signers,
            earlier=[plain_form(root) for root in earlier],
        )
        self._keep(proposal, [item.id for item in taken])
        if missing:
            return False
        self._carry_out(proposal)
        return True

    def add_signatures(self, name: str, signatures: list[tuple[str, str, str]]) -> bool:
        """Add (role, key id, signature) to a proposal; the last one commits it.

        Returns:
            Whether it is committed now.

        Raises:
            NotFound: if there is no such proposal (any more).
            Invalid: if a signature is not right, or of nobody who may sign; then none was added.
            OSError: if it cannot be written.
        """
        proposal = self.pending.get(name)
        if proposal is None:
            raise NotFound(
                "no_such_proposal",
                f"Nothing waits under {name}: it was committed, or changed since.",
                "Look again: edgefleet trust status",
            )
        found = self.needs(proposal)
        metadata = proposal.metadata()
        for role, keyid, signature in signatures:
            keys = [
                {**need.signed, **need.unsigned}.get(keyid) for need in found if need.role == role
            ]
            key = next((key for key in keys if key is not None), None)
            if key is None:
                raise Invalid(
                    "not_a_signer",
                    f"The key {keyid[:12]} may not sign {role[:100]}.",
                    "Sign with a key that edgefleet trust status names.",
                )
            try:
                key.verify_signature(Signature(keyid, signature), metadata[role].signed_bytes)
            except Exception as error:
                raise Invalid(
                    "wrong_signature", f"The signature of {keyid[:12]} for {role[:100]} is wrong."
                ) from error
            proposal = proposal.signed_by(role, keyid, signature)
        self._keep(proposal, [])
        if any(need.missing for need in self.needs(proposal)):
            return False
        self._carry_out(proposal)
        return True

    def finish(self) -> bool:
        """Carry out what has all its signatures: after a crash, or a disk that was full.

        Returns:
            Whether there was anything. Raises OSError.
        """
        done = False
        for proposal in list(self.pending.values()):
            if not any(need.missing for need in self.needs(proposal)):
                self._carry_out(proposal)
                done = True
        return done

    def jump(self, least: Mapping[str, int]) -> None:
        """Give the next files at least these versions.

        Args:
            least: of ``timestamp``, ``snapshot`` and ``targets`` (of any role of that kind).
        """
        self._highest = max(self._highest, least["targets"])
        self._least = {"snapshot": least["snapshot"], "timestamp": least["timestamp"]}

    def show_again(self) -> None:
        """Make a new snapshot, and a timestamp for it. Raises OSError."""
        self._show({})

    def show_timestamp(
        self, snapshot: Metadata[Snapshot] | None = None, root: Metadata[Root] | None = None
    ) -> None:
        """Make a new timestamp: what it leads to is what the world sees. Raises OSError."""
        root, snapshot = root or self.shown.root, snapshot or self.shown.snapshot
        timestamp = Metadata(
            Timestamp(
                version=max(
                    self.shown.timestamp.signed.version + 1, self._least.get("timestamp", 0)
                ),
                expires=expiry(self.now_ms() + self.lifetimes.timestamp_ms),
                snapshot_meta=MetaFile(snapshot.signed.version),
            )
        )
        data = sign(timestamp, self.signers, "timestamp")
        try:
            self.files.write("timestamp.json", data)
        except OSError:
            # Whether it took effect is for the disk to say; with another root it did not.
            with contextlib.suppress(OSError, ValueError):
                self.shown = load(self.files, root.signed.version)
            raise
        self.shown = Shown(root, snapshot, timestamp, data)

    # --- how ------------------------------------------------------------------------------------

    def _after(self, earlier: Sequence[Metadata[Root]]) -> Callable[[str], Root | Targets]:
        def delegator(role: str) -> Root | Targets:
            return self._last_of(earlier).signed if role == "root" else self.committed(role)

        return delegator

    def _last_of(self, earlier: Sequence[Metadata[Root]]) -> Metadata[Root]:
        return earlier[-1] if earlier else self.shown.root

    @staticmethod
    def _earlier(proposals: Iterable[Proposal]) -> list[Metadata[Root]]:
        return [root for item in proposals for root in item.earlier_roots()]

    def _next(
        self, role: str, signed: Root | Targets, earlier: Sequence[Metadata[Root]]
    ) -> Metadata[Any]:
        if role == "root":
            before = self._last_of(earlier or self._earlier(self.pending.values()))
            signed.version = before.signed.version + 1
            signed.expires = expiry(self.now_ms() + self.lifetimes.root_ms)
        else:
            self._highest += 1
            signed.version = self._highest
            signed.expires = expiry(self.now_ms() + self.lifetimes.targets_ms)
        return Metadata[Any](signed)

    def _sign(
        self,
        files: Mapping[str, Metadata[Any]],
        changed: Mapping[str, list[HeldKey]],
        delegator: Callable[[str], Root | Targets],
    ) -> None:
        loaded: dict[str, Any] = {}
        for need in approval.needs(files, delegator):
            owner = signing_role(need.role)
            here = {
                key.keyid: key
                for key in (*self.signers.held(owner), *changed.get(owner, []))
                if key.uri
            }
            for keyid in need.unsigned:
                if keyid in here and keyid not in files[need.role].signatures:
                    if keyid not in loaded:
                        loaded[keyid] = self.signers.signer_of(owner, here[keyid])
                    files[need.role].sign(loaded[keyid], append=True)

    def _keep(self, proposal: Proposal, replaced: list[str]) -> None:
        self._proposals.save(proposal, replaced)
        gone = {*replaced, proposal.id}
        self.pending = {name: item for name, item in self.pending.items() if name not in gone}
        self.pending[proposal.id] = proposal

    def _write(self, files: Mapping[str, Metadata[Any]], documents: Mapping[str, bytes]) -> None:
        for path, data in documents.items():
            self.files.write_document(path, data)
        for role, metadata in files.items():
            self.files.write(f"{metadata.signed.version}.{role}.json", to_bytes(metadata))

    def _carry_out(self, proposal: Proposal) -> None:
        files = proposal.metadata()
        root = files.pop("root", None)
        if root is not None and root.signed.version <= self.shown.root.signed.version:
            root = None  # It was carried out before.
        self._write(files, proposal.documents)
        for before in proposal.earlier_roots():
            self.files.write(f"{before.signed.version}.root.json", to_bytes(before))
        if root is not None:
            self.files.write(f"{root.signed.version}.root.json", to_bytes(root))
        if proposal.signers:
            self.signers.replace(proposal.signers)
        self._show(files, root)
        self._proposals.remove(proposal.id)
        self.pending = {name: item for name, item in self.pending.items() if item != proposal}
        if proposal.signers:
            waiting = [keys for item in self.pending.values() for keys in item.signers.values()]
            self.signers.drop_unused([key for keys in waiting for key in keys])

    def _show(self, files: Mapping[str, Metadata[Any]], root: Metadata[Root] | None = None) -> None:
        old = self.shown.snapshot.signed
        meta = dict(old.meta)
        for role, metadata in files.items():
            meta[f"{role}.json"] = MetaFile(metadata.signed.version)
        snapshot = Metadata(
            Snapshot(
                version=max(old.version + 1, self._least.get("snapshot", 0)),
                expires=expiry(self.now_ms() + self.lifetimes.snapshot_ms),
                meta=meta,
            )
        )
        data = sign(snapshot, self.signers, "snapshot")
        self.files.write(f"{snapshot.signed.version}.snapshot.json", data)
        self.show_timestamp(snapshot, root)
        for role in ("snapshot", *files):
            self.files.prune(role)

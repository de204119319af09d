"""The device's side of The Update Framework: from a pinned root to what is said about one file.

Decides what is asked for, in which order, how large and how slow it may be, and when it is stored.
Whether bytes may be believed is decided by python-tuf's trusted metadata set: signatures,
thresholds, versions, expiry. Its downloader is not used: that one spools files in memory and
promises nothing about a power cut. The order is that of the specification's client workflow:
https://theupdateframework.github.io/specification/latest/#detailed-client-workflow
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from tuf.api.exceptions import (
    BadVersionNumberError,
    EqualVersionNumberError,
    ExpiredMetadataError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Targets
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from device_agent.errors import StepFailed
from device_agent.shell.http_source import Canceled, HttpFailure, HttpSource
from device_agent.shell.metadata_files import MetadataFiles
from fleet_contract import limits
from fleet_contract.errors import Reason

ROOT_ROTATIONS = 256
"""Roots taken in one refresh; the rest in the next (specification, 5.3.3)."""
DELEGATIONS = 32
"""Roles visited for one file (specification, 5.6.7.1)."""
REFRESH_S = 180.0
"""For everything that one refresh asks for: who drips a byte at a time is given up."""

_ABSENT = frozenset({403, 404})
_REASONS: tuple[tuple[type[RepositoryError], Reason], ...] = (
    (ExpiredMetadataError, Reason.EXPIRED),
    (UnsignedMetadataError, Reason.BAD_SIGNATURE),
    (BadVersionNumberError, Reason.OLD_METADATA),
)


@dataclass(frozen=True, slots=True)
class Target:
    """What the metadata says about one file: all its hashes must be right."""

    path: str
    size_bytes: int
    hashes: Mapping[str, str]
    consistent: bool

    @property
    def address(self) -> str:
        """Where its bytes lie below the address of files: a name that its content decides.

        A file whose name begins with its hash anyway lies under just that.
        """
        folder, separator, name = self.path.rpartition("/")
        if not self.consistent or name.startswith(self.hashes.get("sha256", "-")):
            return self.path
        return f"{folder}{separator}{next(iter(self.hashes.values()))}.{name}"


class MetadataRefresh:
    """One refresh, and the look-ups after it. Make a new one for the next refresh."""

    def __init__(
        self,
        files: MetadataFiles,
        source: HttpSource,
        *,
        now_ms: int,
        ticks_ns: Callable[[], int],
        canceled: Callable[[], bool] = lambda: False,
        refresh_s: float = REFRESH_S,
    ) -> None:
        """Begin from the root that is stored.

        Args:
            files: the trusted metadata; its root was pinned at enrolment.
            source: below it lies the metadata.
            now_ms: the device's trusted time, by which expiry is judged throughout.
            ticks_ns: for the deadline of the whole.
            canceled: asked now and then; everything is given up once it says yes.
            refresh_s: the deadline.

        Raises:
            StepFailed: if there is no readable root: then nothing at all is believed.
        """
        self._files = files
        self._source = source
        self._ticks_ns = ticks_ns
        self._deadline_ns = ticks_ns() + int(refresh_s * 1e9)
        self._canceled = canceled
        data = files.load("root")
        if data is None:
            raise StepFailed(Reason.BAD_METADATA, "the pinned root cannot be read: enrol anew")
        with _judged("root"):
            self._trusted = TrustedMetadataSet(data, EnvelopeType.METADATA)
        self._trusted.reference_time = datetime.fromtimestamp(now_ms / 1000, UTC)

    @property
    def root_version(self) -> int:
        """Version of the root that is believed."""
        return self._trusted.root.version

    def refresh(self) -> None:
        """Bring root, timestamp, snapshot and targets up to date.

        Raises:
            StepFailed: ``expired``, ``old_metadata``, ``bad_signature``, ``bad_metadata``, or
                ``download_failed``. Canceled: if nobody waits for it.
        """
        self._refresh_root()
        self._refresh_timestamp()
        self._refresh_snapshot()
        self._targets("targets", "root")

    def is_far(self, data: bytes) -> bool:
        """Say whether between the root that is believed and this one there are others.

        Raises:
            StepFailed: ``bad_metadata`` if it is no root.
        """
        return _root_of(data).signed.version > self.root_version + 1

    def take_root(self, data: bytes) -> bool:
        """Believe a root that came another way, after all between it and the one that is believed.

        Returns:
            Whether it was news.

        Raises:
            StepFailed: ``bad_signature``, ``old_metadata``, ``equivocation`` (another root of the
                version that is believed, rightly signed) or ``bad_metadata``; ``download_failed``
                if roots between cannot be had. OSError: if it cannot be stored.
        """
        offered = _root_of(data)
        if offered.signed.version > self.root_version + 1:
            self._refresh_root()
        present = self._trusted.root
        if offered.signed.version == present.version + 1:
            with _judged("root"):
                self._trusted.update_root(data)
            self._files.save("root", data)
            return True
        with _judged("root"):
            if offered.signed.version > present.version:
                raise BadVersionNumberError(f"nobody has the roots up to {offered.signed.version}")
            if offered.signed.version < present.version:
                raise BadVersionNumberError(f"{offered.signed.version} < {present.version} held")
            present.verify_delegate("root", offered.signed_bytes, offered.signatures)
        if offered.signed != present:
            raise StepFailed(Reason.EQUIVOCATION, f"another root of version {present.version}")
        return False

    def find(self, path: str) -> Target:
        """Return what the roles that may speak about this path say about it.

        Raises:
            StepFailed: ``unknown_target`` if none of them knows it; or as :meth:`refresh`.
        """
        waiting, visited = [("targets", "root")], set[str]()
        while waiting and len(visited) <= DELEGATIONS:
            role, delegator = waiting.pop()
            if role in visited:
                continue
            targets = self._targets(role, delegator)
            visited.add(role)
            found = targets.targets.get(path)
            if found is not None:
                return Target(
                    path, found.length, found.hashes, bool(self._trusted.root.consistent_snapshot)
                )
            if targets.delegations is None:
                continue
            children: list[tuple[str, str]] = []
            for name, terminating in targets.delegations.get_roles_for_target(path):
                children.append((name, role))
                if terminating:
                    # This role alone decides: who comes after it has no say about this path.
                    waiting.clear()
                    break
            waiting += reversed(children)
        raise StepFailed(Reason.UNKNOWN_TARGET, f"nobody vouches for {path[:200]}")

    def find_at_top(self, path: str) -> Target | None:
        """Return what the top-level role itself says about this path; None if it does not."""
        found = self._targets("targets", "root").targets.get(path)
        if found is None:
            return None
        consistent = bool(self._trusted.root.consistent_snapshot)
        return Target(path, found.length, found.hashes, consistent)

    # --- one role after another -----------------------------------------------------------------

    def _refresh_root(self) -> None:
        first = self._trusted.root.version + 1
        for version in range(first, first + ROOT_ROTATIONS):
            data = self._fetch(f"{version}.root", limits.ROOT_BYTES, may_be_absent=True)
            if data is None:
                return
            with _judged("root"):
                self._trusted.update_root(data)
            self._files.save("root", data)

    def _refresh_timestamp(self) -> None:
        held = self._files.load("timestamp")
        if held is not None:
            self._try(lambda: self._trusted.update_timestamp(held))
        data = self._must_fetch("timestamp", limits.TIMESTAMP_BYTES)
        with _judged("timestamp"):
            try:
                self._trusted.update_timestamp(data)
            except EqualVersionNumberError:
                return
        self._files.save("timestamp", data)

    def _refresh_snapshot(self) -> None:
        held = self._files.load("snapshot")
        if held is not None and self._try(
            lambda: self._trusted.update_snapshot(held, trusted=True)
        ):
            return
        stated = self._trusted.timestamp.snapshot_meta
        name = self._name("snapshot", stated.version)
        data = self._must_fetch(name, stated.length or limits.SNAPSHOT_BYTES)
        with _judged("snapshot"):
            self._trusted.update_snapshot(data)
        self._files.save("snapshot", data)

    def _targets(self, role: str, delegator: str) -> Targets:
        if self._trusted.contains(role, delegator):
            targets = self._trusted[role]
            assert isinstance(targets, Targets)
            return targets
        held = self._files.load(role)
        if held is not None and self._try(
            lambda: self._trusted.update_delegated_targets(held, role, delegator)
        ):
            return self._targets(role, delegator)
        stated = self._trusted.snapshot.meta.get(f"{role}.json")
        if stated is None:
            raise StepFailed(Reason.UNKNOWN_TARGET, f"the snapshot does not name {role[:100]}")
        name = self._name(role, stated.version)
        data = self._must_fetch(name, stated.length or limits.TARGETS_BYTES)
        with _judged(role):
            targets = self._trusted.update_delegated_targets(data, role, delegator)
        self._files.save(role, data)
        return targets

    def _name(self, role: str, version: int) -> str:
        quoted = quote(role, safe="")
        return f"{version}.{quoted}" if self._trusted.root.consistent_snapshot else quoted

    @staticmethod
    def _try(load: Callable[[], object]) -> bool:
        """Load what was stored; what is no longer good enough is fetched anew."""
        try:
            load()
        except (RepositoryError, ValueError):
            return False
        return True

    # --- the network ----------------------------------------------------------------------------

    def _must_fetch(self, name: str, limit_bytes: int) -> bytes:
        data = self._fetch(name, limit_bytes, may_be_absent=False)
        assert data is not None
        return data

    def _fetch(self, name: str, limit_bytes: int, *, may_be_absent: bool) -> bytes | None:
        late = False

        def unwanted() -> bool:
            nonlocal late
            late = self._ticks_ns() >= self._deadline_ns
            return late or self._canceled()

        try:
            with self._source.ask(
                "GET", f"{name}.json", size_bytes=limit_bytes, canceled=unwanted
            ) as answer:
                if may_be_absent and answer.status in _ABSENT:
                    return None
                if answer.status != 200:
                    raise HttpFailure(f"the server answers {answer.status}")
                if answer.length_bytes is not None and answer.length_bytes > limit_bytes:
                    raise HttpFailure(f"the answer is longer than {limit_bytes} bytes")
                return answer.read(limit_bytes)
        except HttpFailure as error:
            raise StepFailed(Reason.DOWNLOAD_FAILED, f"{name}.json: {error}"[:300]) from error
        except Canceled:
            if not late:
                raise
            raise StepFailed(Reason.DOWNLOAD_FAILED, "the refresh takes too long") from None


def _root_of(data: bytes) -> Metadata[Root]:
    with _judged("root"):
        metadata = Metadata[Root].from_bytes(data)
        if metadata.signed.type != Root.type:
            raise RepositoryError(f"it is of type {metadata.signed.type[:40]}")
    return metadata


def check_root(root: bytes) -> None:
    """Check that these bytes are a root that signs itself.

    Raises:
        StepFailed: if they are not.
    """
    with _judged("root"):
        TrustedMetadataSet(root, EnvelopeType.METADATA)


@contextmanager
def _judged(role: str) -> Iterator[None]:
    """Turn whatever python-tuf may raise about foreign bytes into the step's failure."""
    try:
        yield
    except EqualVersionNumberError:
        raise
    except RepositoryError as error:
        reason = next((code for kind, code in _REASONS if isinstance(error, kind)), None)
        detail = f"metadata of {role[:80]}: {error}"[:300]
        raise StepFailed(reason or Reason.BAD_METADATA, detail) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # Its parser lets a few of these through on bytes that are JSON of another shape.
        raise StepFailed(
            Reason.BAD_METADATA, f"metadata of {role[:80]}: {type(error).__name__}"
        ) from error

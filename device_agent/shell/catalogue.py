"""What exists, as the fleet's repository says: asked anew for every release and every keyset.

Decides that nobody else reads or writes the trusted metadata meanwhile, and by which clock it is
judged. All of it proves itself, so a server that nobody vouches for any more is asked all the same:
thus a device learns the anchors by which it verifies every other connection. What a device holds
and has admitted is not looked up here: going back needs no network.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from device_agent.errors import StepFailed
from device_agent.shell.clock import Clock
from device_agent.shell.http_source import HttpSource
from device_agent.shell.metadata_files import MetadataFiles, seen
from device_agent.shell.tls import Tls, unverified
from fleet_contract import limits
from fleet_contract.enrolment import ANCHORS_PATH
from fleet_contract.errors import Reason
from fleet_contract.messages.presence import Seen
from fleet_contract.trust.keyset import KEYSET_PATH

if TYPE_CHECKING:
    from device_agent.shell.metadata_refresh import MetadataRefresh, Target

FOLDER = "metadata"
CHAIN_EVERY_NS = 10_000_000_000
"""A root far ahead of the one held makes the device ask for those in between this often at most."""

_LOG = logging.getLogger(__name__)


class Catalogue:
    """The repository of one fleet, from one device's side. Thread-safe."""

    def __init__(self, folder: Path, server: str, clock: Clock, tls: Tls | None = None) -> None:
        """Take the folder of trusted metadata and the server's URL.

        Args:
            folder: for the metadata.
            server: http or https.
            clock: by which expiry is judged.
            tls: verifies an https server, and keeps the anchors up to date with the metadata.
                Without one nobody is verified: that is first contact.

        Raises:
            ValueError: if ``server`` is no such URL. OSError: if the folder cannot be made.
        """
        self._files = MetadataFiles(folder)
        self._clock = clock
        self._tls = tls if server.startswith("https:") else None
        self._metadata, self._targets = (
            HttpSource(
                f"{server.rstrip('/')}/v1/trust/{place}",
                ticks_ns=clock.ticks_ns,
                tls=unverified if tls is None else tls.context,
                unvouched=unverified,
            )
            for place in ("metadata", "targets")
        )
        self._asking = threading.Lock()
        self._chain_ns: int | None = None

    def pin(self, root: bytes, digest: str) -> None:
        """Make a root the one from which everything is believed, if it is the one that was named.

        Raises:
            StepFailed: ``wrong_hash`` if it is not, ``bad_metadata`` if it is no root.
        """
        from device_agent.shell.metadata_refresh import check_root

        check(root, len(root), digest, "the root")
        check_root(root)
        self._files.save("root", root)

    def seen(self) -> Seen:
        """Return which metadata the device holds; it can only grow while this looks."""
        return seen(self._files)

    @contextmanager
    def refreshed(
        self, *, time_floor_ms: int, canceled: Callable[[], bool]
    ) -> Iterator["MetadataRefresh"]:
        """Yield the metadata, fresh as of now, for look-ups.

        Args:
            time_floor_ms: the device's time is never believed to be earlier.
            canceled: asked now and then.

        Raises:
            StepFailed: if what the server shows is not fresh, or not the fleet's.
            Canceled: if nobody waits for it.
        """
        # Imported when it is needed: it costs a start more than all the rest of trust.
        from device_agent.shell.metadata_refresh import MetadataRefresh

        with self._asking:
            refresh = MetadataRefresh(
                self._files,
                self._metadata,
                now_ms=max(self._clock.now_ms(), time_floor_ms),
                ticks_ns=self._clock.ticks_ns,
                canceled=canceled,
            )
            refresh.refresh()
            if self._tls is not None:
                self._follow_anchors(self._tls, refresh, canceled)
            yield refresh

    def keyset(self, *, time_floor_ms: int, canceled: Callable[[], bool]) -> bytes:
        """Return the newest keyset, of the length and hash that the metadata says.

        Raises:
            StepFailed: if it cannot be had. Canceled: if nobody waits for it.
        """
        with self.refreshed(time_floor_ms=time_floor_ms, canceled=canceled) as refresh:
            target = refresh.find(KEYSET_PATH)
        return self._fetch(target, limits.ENVELOPE_BYTES, "the keyset", canceled)

    def anchors(self, *, time_floor_ms: int, canceled: Callable[[], bool]) -> bytes | None:
        """Return the certificates that vouch for server and broker; None if none are published.

        Raises:
            StepFailed: if they cannot be had. Canceled: if nobody waits for it.
        """
        with self.refreshed(time_floor_ms=time_floor_ms, canceled=canceled) as refresh:
            target = refresh.find_at_top(ANCHORS_PATH)
        if target is None:
            return None
        return self._fetch(target, limits.ANCHORS_BYTES, "the anchors", canceled)

    def _follow_anchors(
        self, tls: Tls, refresh: "MetadataRefresh", canceled: Callable[[], bool]
    ) -> None:
        """Store the anchors if the fleet has others now. A failure costs no release."""
        target = refresh.find_at_top(ANCHORS_PATH)
        if target is None or target.hashes.get("sha256") == tls.anchors_digest():
            return
        try:
            tls.save_anchors(self._fetch(target, limits.ANCHORS_BYTES, "the anchors", canceled))
            _LOG.info("other certificates vouch for server and broker from now on")
        except StepFailed as failed:
            _LOG.warning("the new anchors cannot be had: %s", failed)

    def _fetch(
        self, target: "Target", limit_bytes: int, what: str, canceled: Callable[[], bool]
    ) -> bytes:
        if target.size_bytes > limit_bytes:
            raise StepFailed(Reason.TOO_LARGE, f"{what} of {target.size_bytes} bytes")
        data = self._targets.get(target.address, limit_bytes=target.size_bytes, canceled=canceled)
        check(data, target.size_bytes, target.hashes.get("sha256", ""), what)
        return data

    def take_root(self, document: bytes, *, canceled: Callable[[], bool]) -> bool:
        """Store a root that came from elsewhere, if the one that is held vouches for it.

        Returns:
            Whether it was news.

        Raises:
            StepFailed: if it is not the fleet's, or roots in between cannot be had.
            Canceled: if nobody waits for it. OSError: if it cannot be stored.
        """
        from device_agent.shell.metadata_refresh import MetadataRefresh

        with self._asking:
            if self._files.load("root") == document:
                return False
            refresh = MetadataRefresh(
                self._files,
                self._metadata,
                now_ms=self._clock.now_ms(),
                ticks_ns=self._clock.ticks_ns,
                canceled=canceled,
            )
            now_ns = self._clock.ticks_ns()
            may_ask = self._chain_ns is None or now_ns - self._chain_ns >= CHAIN_EVERY_NS
            if refresh.is_far(document):
                # Anybody who may publish could make the device ask without an end.
                if not may_ask:
                    raise StepFailed(Reason.DOWNLOAD_FAILED, "they were asked for a moment ago")
                self._chain_ns = now_ns
            return refresh.take_root(document)


def check(data: bytes, size_bytes: int, digest: str, what: str) -> None:
    """Check a small file against what the metadata says.

    Raises:
        StepFailed: ``wrong_size`` or ``wrong_hash``.
    """
    if len(data) != size_bytes:
        raise StepFailed(Reason.WRONG_SIZE, f"{what} has {len(data)} bytes, not {size_bytes}")
    if hashlib.sha256(data).hexdigest() != digest:
        raise StepFailed(Reason.WRONG_HASH, f"{what} is not the one that the metadata names")

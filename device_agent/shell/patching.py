"""Making an artifact of one that is here and a patch, instead of downloading all of it.

Decides which patches are asked for and when it is not worth it. A patch is a shortcut that need
not be trusted: the file counts only if its size and hash are those of the signed metadata. Whatever
goes wrong, nothing of it is left, and the whole file is downloaded as if there were no patches.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import BinaryIO

from device_agent.errors import StepFailed
from device_agent.shell.download import WORTH_RESUMING_BYTES, RunningHashes, Wanted
from device_agent.shell.following import Route
from device_agent.shell.http_source import Answer, Canceled, HttpFailure, HttpSource
from device_agent.shell.store import Store
from fleet_contract.deltas.decoder import Decoder
from fleet_contract.deltas.form import Header, patch_path
from fleet_contract.errors import Reason, Refused
from fleet_contract.manifest import FileRef

MOST_BASES = 3
"""So many artifacts are offered for patching, each at the cost of one request."""

_LOG = logging.getLogger(__name__)


class _NoPatch(Exception):
    """The server has none between these two, or it is not worth it."""


def download_by_patch(
    source: HttpSource,
    store: Store,
    file: Wanted,
    bases: Sequence[FileRef],
    canceled: Callable[[], bool],
) -> bool:
    """Bring a file into the store by a patch to one of ``bases``, and say whether that was done.

    Raises:
        Canceled: if nobody wants it any more.
    """
    if store.has(FileRef(file.digest, file.size_bytes)):
        return False
    for base in [base for base in bases if base.digest != file.digest][:MOST_BASES]:
        try:
            patch_bytes = _patch(source, store, file, base, canceled)
        except _NoPatch:
            continue
        except (Refused, StepFailed, HttpFailure, OSError) as error:
            _LOG.warning("%s is not patched, but downloaded: %s", file.digest[:12], error)
            return False
        finally:
            with contextlib.suppress(OSError):
                store.patched(file.digest).unlink()
        _LOG.info(
            "%s was patched by %d bytes, %d were saved",
            file.digest[:12],
            patch_bytes,
            file.size_bytes - patch_bytes,
        )
        return True
    return False


def _patch(
    source: HttpSource, store: Store, file: Wanted, base: FileRef, canceled: Callable[[], bool]
) -> int:
    patch = _Patch(source, patch_path(base.digest, file.digest), _left(store, file), canceled)
    path = store.patched(file.digest)
    with contextlib.closing(patch):
        decoder = Decoder(patch.read)
        if decoder.header != Header(base.digest, file.digest, base.size_bytes, file.size_bytes):
            raise Refused(Reason.MALFORMED, "this patch is for other files")
        store.make_room(file.size_bytes)
        write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        read = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        hashes = RunningHashes(file.hashes)
        with (
            open(os.open(store.artifact(base.digest), read), "rb", buffering=0) as old,
            open(os.open(path, write, 0o600), "wb", buffering=0) as new,
        ):
            for piece in decoder.pieces(lambda start, size: os.pread(old.fileno(), size, start)):
                if canceled():
                    raise Canceled
                _write(new, piece)
                hashes.update(piece)
            if not hashes.right():
                raise StepFailed(Reason.WRONG_HASH, "the patch makes another file")
            os.fsync(new.fileno())
    store.complete(file.digest, path)
    store.partial(file.digest).unlink(missing_ok=True)
    return patch.size_bytes


def _left(store: Store, file: Wanted) -> int:
    """Return how much a plain download would still have to bring."""
    try:
        return file.size_bytes - store.partial(file.digest).lstat().st_size
    except OSError:
        return file.size_bytes


def _write(new: BinaryIO, piece: bytes) -> None:
    written = 0
    while written < len(piece):
        written += new.write(piece[written:])


class _Patch:
    """A patch as it arrives; a broken connection is followed by another for the rest.

    Attributes:
        size_bytes: of the whole patch, known with its first byte.
    """

    def __init__(
        self, source: HttpSource, address: str, most_bytes: int, canceled: Callable[[], bool]
    ) -> None:
        self.size_bytes = 0
        self._route = Route(source)
        self._address = address
        self._most_bytes = most_bytes
        self._canceled = canceled
        self._tag = ""
        self._pieces = self._arriving()
        self._piece = b""

    def read(self, size: int) -> bytes:
        """Return some of the next bytes, none at the end. Raises HttpFailure, Canceled."""
        if not self._piece:
            self._piece = next(self._pieces, b"")
        taken, self._piece = self._piece[:size], self._piece[size:]
        return taken

    def close(self) -> None:
        """Give up the connection."""
        self._pieces.close()

    def _arriving(self) -> Generator[bytes, None, None]:
        have = 0
        while have == 0 or have < self.size_bytes:
            before = have
            try:
                for piece in self._rest(have):
                    have += len(piece)
                    yield piece
            except HttpFailure as failure:
                # Another place has another tag: only what has not begun may begin there.
                if have == 0 and self._route.turn_back(failure):
                    continue
                if have - before < WORTH_RESUMING_BYTES:
                    raise

    def _rest(self, have: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={have}-"} if have else {}
        left = self.size_bytes - have if have else self._most_bytes
        with self._route.ask(
            self._address, size_bytes=left, headers=headers, canceled=self._canceled
        ) as answer:
            self._check_head(answer, have)
            left = self.size_bytes - have
            for piece in answer.pieces():
                left -= len(piece)
                if left < 0:
                    raise HttpFailure("the patch is longer than it should be")
                yield piece
        if left > 0:
            raise HttpFailure("the connection ended before the patch did")

    def _check_head(self, answer: Answer, have: int) -> None:
        if have:
            wanted = f"bytes {have}-{self.size_bytes - 1}/{self.size_bytes}"
            if answer.status != 206 or answer.header("Content-Range") != wanted:
                raise HttpFailure("the server sends no more of the patch")
            if answer.header("ETag") != self._tag:
                raise HttpFailure("the server has another patch now")
            return
        if answer.status == 404:
            raise _NoPatch
        if answer.status != 200:
            raise HttpFailure(f"the server answers {answer.status}")
        size = answer.length_bytes
        if size is None or size == 0:
            raise HttpFailure("the server does not say how long the patch is")
        if size >= self._most_bytes:
            raise _NoPatch
        self.size_bytes, self._tag = size, answer.header("ETag")

"""Downloading one file, known by size and hashes, so that a broken connection costs nothing twice.

Decides how a partial file goes on: it is hashed anew, then the rest is asked for by range. A file
is renamed into place only when size and hash are right and it is on the disk. The address is made
of the hash, so what lies there cannot change, and no validator (If-Range) is needed: should it
have changed after all, the hash is wrong and the download starts over. Where the server leads
elsewhere and that goes wrong, the server itself is asked: for the rest, or for all of it if bytes
were wrong.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from device_agent.errors import StepFailed
from device_agent.shell import flash
from device_agent.shell.following import Route
from device_agent.shell.http_source import Answer, HttpFailure, HttpSource
from device_agent.shell.store import Store
from fleet_contract.errors import Reason
from fleet_contract.manifest import FileRef

WORTH_RESUMING_BYTES = 64 * 1024
"""A connection that brought less is not followed by another at once: the core waits and retries."""
_READ_BYTES = 1024 * 1024
_ALGORITHMS = frozenset({"sha256", "sha512"})


class _StartOver(Exception):
    """The server cannot go on where the partial file ends."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file as signed metadata describes it.

    ``digest`` is the name under which the store keeps it, ``address`` where it lies below the
    source, and every one of ``hashes`` (algorithm → hexadecimal digits) must be right.
    """

    digest: str
    size_bytes: int
    address: str
    hashes: Mapping[str, str]


def download(source: HttpSource, store: Store, file: Wanted, canceled: Callable[[], bool]) -> None:
    """Bring a file into the store, if it is not there.

    Raises:
        StepFailed: ``download_failed`` (what came is kept for the next try), ``wrong_size`` or
            ``wrong_hash`` (it is thrown away), ``disk_full``. Canceled: if nobody wants it.
    """
    if store.has(FileRef(file.digest, file.size_bytes)):
        return
    path = store.partial(file.digest)
    try:
        store.make_room(file.size_bytes - min(_size_of(path), file.size_bytes))
        with open(flash.open_alone(path), "r+b", buffering=0) as partial:
            _fill(source, partial, file, canceled)
            os.fsync(partial.fileno())
        store.complete(file.digest)
    except OSError as error:
        raise flash.failure(error, f"{file.digest[:12]} cannot be stored") from error
    except StepFailed as failed:
        if failed.reason in (Reason.WRONG_HASH, Reason.WRONG_SIZE):
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _fill(
    source: HttpSource, partial: BinaryIO, file: Wanted, canceled: Callable[[], bool]
) -> None:
    route = Route(source)
    while True:
        try:
            return _fill_by(route, partial, file, canceled)
        except StepFailed as failed:
            spoilt = failed.reason is not Reason.DOWNLOAD_FAILED
            # What came from elsewhere may be wrong also where the server brought the rest of it.
            if not (route.turn_back(failed) or (spoilt and route.led)):
                raise
            partial.seek(0)
            if spoilt:
                partial.truncate()
                route.led = False


def _fill_by(route: Route, partial: BinaryIO, file: Wanted, canceled: Callable[[], bool]) -> None:
    hashes, have = _rehash(partial, file)
    started_over = False
    while have < file.size_bytes:
        before = have
        try:
            for piece in _rest(route, file, have, canceled):
                if have + len(piece) > file.size_bytes:
                    raise _too_long(file)
                written = 0
                while written < len(piece):
                    written += partial.write(piece[written:])
                hashes.update(piece)
                have += len(piece)
        except _StartOver:
            if started_over:
                raise StepFailed(
                    Reason.DOWNLOAD_FAILED, "the server sends neither the rest nor the whole"
                ) from None
            started_over = True
            partial.seek(0)
            partial.truncate()
            hashes, have = RunningHashes(file.hashes), 0
            continue
        except HttpFailure as failure:
            if have - before < WORTH_RESUMING_BYTES:
                raise StepFailed(
                    Reason.DOWNLOAD_FAILED, f"after {have} of {file.size_bytes} bytes: {failure}"
                ) from failure
    if not hashes.right():
        raise StepFailed(Reason.WRONG_HASH, f"{file.digest[:12]} came with another content")


class RunningHashes:
    """The running hashes of one file."""

    def __init__(self, expected: Mapping[str, str]) -> None:
        unknown = set(expected) - _ALGORITHMS
        if unknown or not expected:
            raise StepFailed(
                Reason.WRONG_HASH, f"no known hash of it is given: {sorted(unknown)}"[:200]
            )
        self._expected = expected
        self._running = {name: hashlib.new(name) for name in expected}

    def update(self, data: bytes) -> None:
        for hasher in self._running.values():
            hasher.update(data)

    def right(self) -> bool:
        return all(
            hasher.hexdigest() == self._expected[name] for name, hasher in self._running.items()
        )


def _rehash(partial: BinaryIO, file: Wanted) -> tuple[RunningHashes, int]:
    """Return the hashes and size of what came before; a partial file too long is emptied."""
    hashes, have = RunningHashes(file.hashes), 0
    while have <= file.size_bytes and (data := partial.read(_READ_BYTES)):
        hashes.update(data)
        have += len(data)
    if have > file.size_bytes:
        partial.seek(0)
        partial.truncate()
        return RunningHashes(file.hashes), 0
    return hashes, have


def _rest(route: Route, file: Wanted, have: int, canceled: Callable[[], bool]) -> Iterator[bytes]:
    """Yield what follows the first ``have`` bytes; raises HttpFailure if it ends too early."""
    left = file.size_bytes - have
    headers = {"Range": f"bytes={have}-"} if have else {}
    with route.ask(file.address, size_bytes=left, headers=headers, canceled=canceled) as answer:
        _check_head(answer, file, have)
        for piece in answer.pieces():
            left -= len(piece)
            yield piece
    if left > 0:
        raise HttpFailure("the connection ended before the file did")


def _check_head(answer: Answer, file: Wanted, have: int) -> None:
    """Check that this answer is the file from ``have`` on. Raises what there is to raise."""
    left = file.size_bytes - have
    if have and answer.status in (200, 416):
        raise _StartOver
    if answer.status not in (200, 206):
        raise HttpFailure(f"the server answers {answer.status}")
    if answer.status == 206:
        wanted = f"bytes {have}-{file.size_bytes - 1}/{file.size_bytes}"
        if answer.header("Content-Range") != wanted:
            raise HttpFailure("the server sends another range than was asked for")
    length = answer.length_bytes
    if length is not None and length > left:
        raise _too_long(file)


def _too_long(file: Wanted) -> StepFailed:
    return StepFailed(
        Reason.WRONG_SIZE, f"{file.digest[:12]} is longer than its {file.size_bytes} bytes"
    )


def _size_of(path: os.PathLike[str]) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0

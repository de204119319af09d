"""Room on the server's disk for what is sent: what a full disk means to those who send it."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet_server.errors import Full

RESERVE_BYTES = 256 * 1024**2
"""Disk space that uploads leave to the database, the store and the log."""


def free_bytes(folder: Path) -> int:
    """Return how much room there is for this process."""
    return shutil.disk_usage(folder).free


@contextmanager
def room() -> Iterator[None]:
    """Turn the disk's refusal to take more into Full; every other error of it stays what it is."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_room() from error
        raise


def check_room(folder: Path, wanted_bytes: int, free: Callable[[Path], int] = free_bytes) -> None:
    """Check that so many bytes more leave the reserve untouched.

    Raises:
        Full: if they do not.
    """
    if free(folder) < wanted_bytes + RESERVE_BYTES:
        raise no_room()


def no_room() -> Full:
    """Return what is raised where the disk has no room."""
    return Full(
        "disk_full",
        "The server's disk has no room for this.",
        "Make room on it (edgefleet model gc shows what can go); then run the same command again.",
    )

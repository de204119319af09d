"""Files on flash: written so that a power cut leaves the old file or the new one, never half.

Decides the order: write beside → fsync the file → rename → fsync the folder. Also decides that
links, soft or hard, are not written through and that what is read is bounded. What the files mean
is decided elsewhere.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path

from device_agent.errors import StepFailed
from fleet_contract.errors import Reason

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter, and see to it that it is one."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "is a link, not a folder", str(folder))


def write_file(path: Path, data: bytes) -> None:
    """Put these bytes at ``path``, durably, or leave what was there. Raises OSError."""
    beside = path.with_name(f".{path.name}.new")
    # Never into what lies there: it may be a link to a file that is somebody's.
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    descriptor = os.open(
        beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
        with open(descriptor, "wb", buffering=0) as file:
            written = 0
            while written < len(data):
                written += file.write(data[written:]) or 0
            os.fsync(descriptor)
        os.rename(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_folder(path.parent)


def read_file(path: Path, *, limit_bytes: int) -> bytes | None:
    """Return what a regular file holds; None if there is none, if it is a link or too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit_bytes:
            return None
        # A folder cannot be opened as a file, so it is looked at first.
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit_bytes + 1)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return data if len(data) <= limit_bytes else None


def open_alone(path: Path) -> int:
    """Return a descriptor for going on with a file that has this one name; or for a new one.

    What has another name as well, is a link, or is no file at all, is removed: writing on would
    change what the other name stands for. Raises OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            path.unlink()
    descriptor = os.open(path, flags, 0o600)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return descriptor
    os.close(descriptor)
    raise OSError(errno.ELOOP, "has more than one name, or is no file", str(path))


def move_file(source: Path, target: Path) -> None:
    """Rename a file that was synced already, durably. Raises OSError."""
    os.rename(source, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: OSError) -> bool:
    """Say whether an error of the file system means that there is no room."""
    return error.errno in _FULL


def failure(error: OSError, what: str) -> StepFailed:
    """Return an error of the file system as the step's failure that the fleet is told of."""
    reason = Reason.DISK_FULL if is_full(error) else Reason.DOWNLOAD_FAILED
    return StepFailed(reason, f"{what}: {error.strerror or error}")

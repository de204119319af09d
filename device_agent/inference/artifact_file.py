"""Reading an artifact so that what is used is what was hashed.

Decides that a file is read once, into memory, and only those bytes are parsed or loaded. Loading by
path would read the file a second time, and a runtime that opens paths follows links. Where the
store lies and who may write to it is the shell's business.
"""

import hashlib
import os
import stat
from pathlib import Path

from device_agent.errors import StepFailed
from fleet_contract.errors import Reason
from fleet_contract.manifest import FileRef


def read_verified(path: Path, expected: FileRef) -> bytes:
    """Return the bytes of the file, which have the expected size and SHA-256.

    Raises:
        StepFailed: ``download_failed`` if there is no such regular file, ``wrong_size`` or
            ``wrong_hash`` if it is another one.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise StepFailed(
            Reason.DOWNLOAD_FAILED, f"{path.name} cannot be opened: {error.strerror}"
        ) from error
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StepFailed(Reason.DOWNLOAD_FAILED, f"{path.name} is no regular file")
        if status.st_size != expected.size_bytes:
            raise StepFailed(
                Reason.WRONG_SIZE,
                f"{path.name} has {status.st_size} bytes, {expected.size_bytes} were announced",
            )
        try:
            data = file.read(expected.size_bytes) or b""
            # One read returns at most 2 GiB - 4 KiB, and less when interrupted.
            while len(data) < expected.size_bytes and (more := file.read()):
                data += more
        except OSError as error:
            raise StepFailed(
                Reason.DOWNLOAD_FAILED, f"{path.name} cannot be read: {error.strerror}"
            ) from error
    if len(data) != expected.size_bytes:
        raise StepFailed(Reason.WRONG_SIZE, f"{path.name} ended after {len(data)} bytes")
    if hashlib.sha256(data).hexdigest() != expected.digest:
        raise StepFailed(Reason.WRONG_HASH, f"{path.name} is not the file that was announced")
    return data

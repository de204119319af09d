"""One agent a folder: whoever runs in it holds its lock for as long."""

import fcntl
import os
from pathlib import Path

from device_agent.errors import StartFailed


def lock(folder: Path) -> int:
    """Take the lock of a folder; closing the descriptor that is returned gives it up.

    Raises:
        StartFailed: if another agent runs in this folder.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    held = -1
    try:
        held = os.open(folder / "lock", flags, 0o600)
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if held >= 0:
            os.close(held)
        raise StartFailed(
            f"{folder} is in use by another agent, or cannot be written: {error}"
        ) from error
    return held

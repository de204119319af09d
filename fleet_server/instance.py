"""Which server this is, among those that share a database: an id of its data folder.

Decides that a server which comes back is the one that went: what it had leased is still its own,
and nobody waits for a lease of the dead to run out. One process at a time holds the folder.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

ID_FILE = "instance"
ID_BYTES = 8
_ID = re.compile(r"^[0-9a-f]{16}\Z")


def instance_of(folder: Path, *, random_bytes: Callable[[int], bytes]) -> str:
    """Return the id of the server of this folder, drawn when it is first asked for."""
    path = folder / ID_FILE
    try:
        written = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        written = ""
    if _ID.match(written):
        return written
    drawn = random_bytes(ID_BYTES).hex()
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="ascii") as file:
        file.write(f"{drawn}\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    return drawn

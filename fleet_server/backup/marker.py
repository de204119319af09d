"""The mark of a restored data folder: until the fleet was asked, this server does not lead it.

A restored server knows less than its devices. It would sign what they refuse, and put older
documents over newer ones. So while the mark is there it listens, and publishes and decides nothing;
``edgefleet trust after-restore`` removes it.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from fleet_contract import codec
from fleet_contract.errors import Refused
from fleet_server.errors import StartError
from fleet_server.trust import durable

MARKER_FILE = "restored"
ADVICE = "Run: edgefleet trust after-restore."
_BYTES = 4096


class Restored(msgspec.Struct, frozen=True):
    """When the folder was restored, and when its backup was made (the servers' times)."""

    restored_ms: int
    made_ms: int


def write_marker(data_dir: Path, restored: Restored) -> None:
    """Mark a data folder as restored. Raises OSError."""
    durable.write_file(data_dir / MARKER_FILE, codec.encode_json(restored))


def read_marker(data_dir: Path) -> Restored | None:
    """Return the mark, None if this folder was not restored, or is through with it.

    Raises:
        StartError: if it is there and cannot be read.
    """
    try:
        data = (data_dir / MARKER_FILE).read_bytes()
        return codec.decode_json(data, Restored, limit_bytes=_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, Refused) as error:
        raise StartError(
            "marker_unreadable",
            f"The file {MARKER_FILE} of the data folder cannot be read.",
            "Restore the backup once more, into another folder.",
        ) from error


def remove_marker(data_dir: Path) -> None:
    """Take the mark away, durably. Raises OSError."""
    (data_dir / MARKER_FILE).unlink(missing_ok=True)
    durable.sync_folder(data_dir)


class Standstill:
    """Whether this server leads its fleet, and how it begins to. Thread-safe.

    Attributes:
        restored: the mark, None once the server leads.
    """

    def __init__(self, data_dir: Path, lead: Callable[[], None]) -> None:
        """Read the mark; without one the server leads at once.

        Args:
            data_dir: the data folder.
            lead: starts whatever decides and publishes; called once.

        Raises:
            StartError: if the mark is there and cannot be read.
        """
        self.restored = read_marker(data_dir)
        self._data_dir = data_dir
        self._lead = lead
        self._lock = threading.Lock()
        if self.restored is None:
            lead()

    def end(self) -> None:
        """Remove the mark and lead. Raises OSError."""
        with self._lock:
            if self.restored is None:
                return
            remove_marker(self._data_dir)
            self.restored = None
            self._lead()

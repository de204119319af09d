"""The server's folder: made if missing, checked, and held by one server at a time.

Two servers on one folder would each believe that its keys, its store and its SQLite file are its
own. The lock is the kernel's: it goes when the process does, however that ends.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet_server.errors import StartError

LOCK_FILE = "lock"
SWEEP_FILE = "sweep-lock"
TOKEN_FILE = "admin-token"
BROKER = "broker-port"
DEVICES = "device-port"
URL_FILE = "server-url"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder for as long as the block runs.

    Raises:
        StartError: if it cannot be made or written, or another server holds it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartError(
            "data_dir_unwritable",
            f"The data folder {folder} cannot be written: {error.strerror}.",
            "Name another by --data-dir, or make this one writable for the user that you are.",
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartError(
                "data_dir_in_use",
                f"Another server uses the data folder {folder} (process {_holder(handle)}).",
                "Stop that one, or name another folder by --data-dir.",
            ) from error
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def sweeping(folder: Path) -> Iterator[bool]:
    """Say whether nobody copies the folder; as long as the block runs then, nobody begins to."""
    handle = os.open(folder / SWEEP_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)


@contextmanager
def copying(folder: Path) -> Iterator[None]:
    """Keep whoever sweeps the store from it while the block runs; waits for one that is at it."""
    try:
        handle = os.open(folder / SWEEP_FILE, os.O_RDONLY)
    except FileNotFoundError:
        yield  # no server that sweeps was ever here
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _holder(handle: int) -> str:
    written = os.pread(handle, 20, 0).decode("ascii", "replace")
    return written if written.isdigit() else "unknown"


def remembered_port(folder: Path, whose: str) -> int:
    """Return the port, of the broker or for devices, of an earlier start, 0 for none: devices keep
    the addresses.
    """
    try:
        written = (folder / whose).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return 0
    return int(written) if written.isdigit() and int(written) < 65_536 else 0


def remember_port(folder: Path, port: int, whose: str) -> None:
    """Keep a port for the next start."""
    fresh = folder / f"{whose}.new"
    fresh.write_text(f"{port}\n", encoding="ascii")
    fresh.rename(folder / whose)


def remembered_url(folder: Path) -> str:
    """Return where the server of this folder listened last, empty if it never did."""
    try:
        return (folder / URL_FILE).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def remember_url(folder: Path, url: str) -> None:
    """Keep the server's URL for the command line on the same machine."""
    fresh = folder / f"{URL_FILE}.new"
    fresh.write_text(f"{url}\n", encoding="utf-8")
    fresh.rename(folder / URL_FILE)

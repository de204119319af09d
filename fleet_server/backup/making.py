"""Makes a backup of a data folder and its database, also while the server runs.

Decides the order: first the database as of one moment, then the files that it refers to, which are
only ever added; of the repository of what exists the timestamp first, then what it leads to. So
the copy may know more files than the database, never fewer. The archive appears under its name only
when it is whole and on disk.
"""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from tuf.api.exceptions import RepositoryError

from fleet_contract import codec
from fleet_contract.errors import Refused
from fleet_contract.limits import ENVELOPE_BYTES
from fleet_server.backup import archive, contents, dump
from fleet_server.backup.archive import Writer
from fleet_server.backup.contents import Description, Summary
from fleet_server.data_folder import copying
from fleet_server.database import Database
from fleet_server.errors import Conflict, Invalid, Unavailable
from fleet_server.trust import durable
from fleet_server.trust.catalogue.files import CatalogueFiles
from fleet_server.trust.keyring import KEYSET_FILE

ATTEMPTS = 5
"""The repository is read again if versions that were named were pruned meanwhile."""

Progress = Callable[[str, int], None]
"""``progress(name, size_bytes)``, after each member."""


class _Fleet(msgspec.Struct, frozen=True):
    fleet: str


def make_backup(
    target: Path,
    data_dir: Path,
    database: Database,
    *,
    now_ms: int,
    with_keys: bool = True,
    progress: Progress = lambda _name, _size: None,
) -> Summary:
    """Write a backup.

    Args:
        target: the file to make; for its owner alone to read.
        data_dir: the server's data folder.
        database: its database.
        now_ms: the time that the backup bears.
        with_keys: whether the private keys and the admin's token come along.
        progress: is told of every member.

    Raises:
        Conflict: if the file is there, or the database was never used by a server.
        Invalid: if something in the data folder is not what a server keeps there.
        Unavailable: if it cannot be read or written; then there is no such file.
    """
    if target.exists():
        raise Conflict(
            "backup_exists", f"There is a file {target} already.", "Choose another name."
        )
    part = target.with_name(f"{target.name}.part")
    try:
        with suppress(FileNotFoundError):
            part.unlink()  # of one that was killed
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb", buffering=archive.CHUNK) as file:
            try:
                writer = Writer(file, now_ms)
                # What the database refers to at its moment stays until it is copied.
                with copying(data_dir):
                    description, files = _write(
                        writer, data_dir, database, now_ms, with_keys, progress
                    )
                writer.finish()
                file.flush()
                os.fsync(file.fileno())
                # Unlike a rename, a link never takes the place of a file that came meanwhile.
                os.link(part, target)
            finally:
                part.unlink(missing_ok=True)
        durable.sync_folder(target.parent)
        return Summary(description, files, target.stat().st_size)
    except SQLAlchemyError as error:
        raise Unavailable(
            "no_database",
            f"The database cannot be read: {type(error).__name__}.",
            "Check that it runs and that --database-url is right.",
        ) from error
    except OSError as error:
        raise Unavailable(
            "backup_failed",
            f"The backup cannot be made: {error.strerror}: {error.filename or target}.",
            "Check that there is room and that you may read the data folder.",
        ) from error


def _write(
    writer: Writer,
    data_dir: Path,
    database: Database,
    now_ms: int,
    with_keys: bool,
    progress: Progress,
) -> tuple[Description, int]:
    fleet = _fleet_of(data_dir)
    with database.reading() as session:
        description = _write_database(
            writer, session.connection(), fleet, now_ms, with_keys, progress
        )
    count = 0
    for name, data in _metadata(data_dir):
        writer.add_bytes(f"{contents.FILES}/{name}", data)
        progress(name, len(data))
        count += 1
    for name in _files(data_dir, with_keys):
        size_bytes = _copy(writer, data_dir, name, with_keys)
        if size_bytes is not None:
            progress(name, size_bytes)
            count += 1
    return description, count


def _write_database(
    writer: Writer,
    connection: Connection,
    fleet: str,
    now_ms: int,
    with_keys: bool,
    progress: Progress,
) -> Description:
    revision = dump.revision_of(connection)
    if not revision:
        raise Conflict(
            "empty_database",
            "The database holds no tables of a server.",
            "Check --data-dir and --database-url.",
        )
    tables = dump.tables_of(connection)
    description = Description(
        format=contents.FORMAT,
        fleet=fleet,
        edgefleet=metadata.version("edgefleet"),
        revision=revision,
        made_ms=now_ms,
        keys=with_keys,
        tables=[dump.shape_of(connection, table) for table in tables],
    )
    writer.add_bytes(contents.DESCRIPTION, codec.encode_json(description))
    for table in tables:
        for number, part in enumerate(dump.parts(connection, table)):
            name = contents.part_name(table.name, number)
            writer.add_bytes(name, part)
            progress(name, len(part))
    return description


def _fleet_of(data_dir: Path) -> str:
    """Return whose data folder it is: its keys say so."""
    path = data_dir / "keys" / KEYSET_FILE
    try:
        return codec.decode_json(path.read_bytes(), _Fleet, limit_bytes=ENVELOPE_BYTES).fleet
    except (FileNotFoundError, NotADirectoryError, Refused) as error:
        raise Conflict(
            "no_data_folder",
            f"{data_dir} is not the data folder of a server.",
            "Name it by --data-dir.",
        ) from error


def _metadata(data_dir: Path) -> list[tuple[str, bytes]]:
    """Return the repository's metadata as of one moment, and every root."""
    files = CatalogueFiles(data_dir / "trust")
    for attempt in range(ATTEMPTS):
        try:
            return [
                (f"{contents.METADATA}/{name}", data) for name, data in files.committed().items()
            ]
        except FileNotFoundError:
            if attempt == ATTEMPTS - 1:
                raise
        except RepositoryError as error:
            raise Invalid(
                "unexpected_file",
                f"The repository of what exists cannot be read: {type(error).__name__}.",
                "Repair the server first: a backup of it would be of no use.",
            ) from error
    raise AssertionError("there is at least one attempt")


def _files(data_dir: Path, with_keys: bool) -> Iterator[str]:
    """Yield the names of all other files, relative to the data folder."""
    for name in contents.SINGLE_FILES:
        if (data_dir / name).exists() and (with_keys or name not in contents.SECRET_FILES):
            yield name
    left_out = {contents.UNFINISHED, contents.METADATA}
    if not with_keys:
        left_out.update(contents.KEY_FOLDERS)
    for room in contents.FOLDERS:
        for folder, inner, names in os.walk(data_dir / room):
            place = Path(folder).relative_to(data_dir).as_posix()
            if place in left_out:
                inner.clear()
                continue
            inner.sort()
            # What begins with a dot is being written.
            yield from (f"{place}/{name}" for name in sorted(names) if not name.startswith("."))


def _copy(writer: Writer, data_dir: Path, name: str, with_keys: bool) -> int | None:
    """Copy one file; returns its size, or None if it is a key that is to stay."""
    handle = os.open(data_dir / name, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise Invalid("unexpected_file", f"{name} in the data folder is not a plain file.")
        if not with_keys and name.startswith("pki/") and b"PRIVATE KEY" in file.read(64 * 1024):
            return None
        file.seek(0)
        chunks = iter(lambda: file.read(archive.CHUNK), b"")
        writer.add(f"{contents.FILES}/{name}", status.st_size, chunks)
        return status.st_size

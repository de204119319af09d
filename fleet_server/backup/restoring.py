"""Makes a server of a backup again: into an empty place, and only if every sum is right.

Decides that nothing is written before the whole file was checked, and that the data folder appears
at once, when everything in it is on disk. What was checked is checked again as it is written: the
file may have changed meanwhile. Killed in between, it leaves a folder beside that the next attempt
removes, and at most a half-filled database elsewhere, which it refuses to use.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection, Table
from sqlalchemy.exc import SQLAlchemyError

from fleet_contract import codec
from fleet_contract.errors import Refused
from fleet_server.backup import archive, contents, dump
from fleet_server.backup.archive import Member, refuse
from fleet_server.backup.contents import Description, Summary
from fleet_server.backup.dump import TableShape
from fleet_server.backup.marker import Restored, write_marker
from fleet_server.database import Database
from fleet_server.errors import Conflict, Invalid, StartError, Unavailable
from fleet_server.trust import durable
from fleet_server.trust.authority.gaps import add_gap

UNFINISHED_MARK = ".restoring"
"""Says that a folder beside the data folder is ours to remove."""
SQLITE_FILE = "fleet.sqlite"

Progress = Callable[[str, int], None]
"""``progress(name, size_bytes)``, after each member."""


def check_backup(file: BinaryIO) -> tuple[Summary, dict[str, str]]:
    """Read all of a backup; return what it says about itself, and name → SHA-256.

    Raises:
        Invalid: if anything in it is not whole, or not of a backup. OSError: if it cannot be read.
    """
    file.seek(0)
    sums = archive.read_sums(file)
    file.seek(0)
    first = next(archive.members(file))
    if first.name != contents.DESCRIPTION:
        raise refuse(f"it begins with {first.name}")
    description = _describe(first.read(contents.DESCRIPTION_BYTES))
    tables = {shape.name for shape in description.tables}
    files = 0
    for name in sums:
        if contents.file_of(name) is not None:
            files += 1
        elif name != contents.DESCRIPTION and contents.table_of(name) not in tables:
            raise refuse(f"{name} is no member of a backup")
    return Summary(description, files, file.seek(0, os.SEEK_END)), sums


def restore(
    source: Path,
    data_dir: Path,
    database_url: str,
    *,
    now_ms: int,
    progress: Progress = lambda _name, _size: None,
) -> Summary:
    """Make a data folder and a database of a backup, and mark the folder as restored.

    Args:
        source: the backup.
        data_dir: where the data folder will be: nothing, or an empty folder.
        database_url: of an empty database; empty for a SQLite file in the data folder.
        now_ms: when this is.
        progress: is told of every member.

    Raises:
        Invalid: if the backup is not whole; nothing was written then.
        Conflict: if there is something in the place already.
        StartError: if a newer version made the backup, or the database cannot be used.
        Unavailable: if something cannot be read or written.
    """
    if data_dir.exists() and (not data_dir.is_dir() or any(data_dir.iterdir())):
        raise Conflict(
            "not_empty",
            f"{data_dir} is not empty.",
            "Name a new folder by --data-dir, or move this one away.",
        )
    try:
        with source.open("rb") as file:
            summary, sums = check_backup(file)
            fresh = _make_fresh(data_dir)
            url = database_url or f"sqlite:///{fresh / SQLITE_FILE}"
            file.seek(0)
            with closing(Database(url)) as database:
                _fill(file, fresh, database, summary.description, sums, progress)
        if (fresh / contents.PKI).is_dir():
            add_gap(fresh / contents.PKI, summary.description.made_ms, now_ms)
        write_marker(fresh, Restored(now_ms, summary.description.made_ms))
        os.sync()
        (fresh / UNFINISHED_MARK).unlink()
        fresh.rename(data_dir)
        durable.sync_folder(data_dir.parent)
        return summary
    except SQLAlchemyError as error:
        raise Unavailable(
            "no_database",
            f"The database cannot be filled: {type(error).__name__}.",
            "Check that it runs, and give an empty one by --database-url.",
        ) from error
    except OSError as error:
        raise Unavailable(
            "restore_failed",
            f"The backup cannot be restored: {error.strerror}: {error.filename or source}.",
            "Check that the file is there and that there is room; then run it again.",
        ) from error


def _describe(data: bytes) -> Description:
    try:
        description = codec.decode_json(data, Description, limit_bytes=contents.DESCRIPTION_BYTES)
    except Refused as error:
        raise refuse(f"{contents.DESCRIPTION} cannot be read") from error
    if description.format != contents.FORMAT:
        raise Invalid(
            "newer_backup",
            f"This backup is of format {description.format}; this version reads format "
            f"{contents.FORMAT}.",
            f"Use edgefleet {description.edgefleet[:40]} or a newer one.",
        )
    return description


def _make_fresh(data_dir: Path) -> Path:
    fresh = data_dir.with_name(f"{data_dir.name}.new")
    if (fresh / UNFINISHED_MARK).exists():
        shutil.rmtree(fresh)  # of a restore that was killed
    if fresh.exists():
        raise Conflict("not_empty", f"{fresh} is in the way.", "Move it away.")
    fresh.mkdir(mode=0o700, parents=True)
    (fresh / UNFINISHED_MARK).touch()
    return fresh


def _fill(
    file: BinaryIO,
    fresh: Path,
    database: Database,
    description: Description,
    sums: dict[str, str],
    progress: Progress,
) -> None:
    with database.transaction() as session:
        if not dump.is_empty(session.connection()):
            raise Conflict(
                "database_not_empty",
                "There are tables in the database already.",
                "Give an empty one by --database-url; after a restore that was interrupted, drop "
                "and create it.",
            )
    _migrate_to(database, description)
    with database.transaction() as session:
        _load(file, fresh, session.connection(), description, sums, progress)
    database.migrate()


def _migrate_to(database: Database, description: Description) -> None:
    try:
        database.migrate(description.revision)
    except StartError as error:
        if error.code != "unknown_migration":
            raise
        raise StartError(
            "newer_backup",
            f"The backup was made by a newer version: edgefleet {description.edgefleet[:40]}.",
            "Restore it with that version or a newer one.",
        ) from error


def _load(
    file: BinaryIO,
    fresh: Path,
    connection: Connection,
    description: Description,
    sums: dict[str, str],
    progress: Progress,
) -> None:
    tables = {table.name: table for table in dump.tables_of(connection)}
    shapes = {shape.name: shape for shape in description.tables}
    if tables.keys() != shapes.keys():
        wrong = ", ".join(sorted(tables.keys() ^ shapes.keys()))[:300]
        raise refuse(f"its tables are not those of its version: {wrong}")
    dump.clear(connection, tables.values())
    loaded = dict.fromkeys(tables, 0)
    for member in archive.members(file):
        checked = _checked(member, sums.get(member.name, ""))
        table, path = contents.table_of(member.name), contents.file_of(member.name)
        if table is not None:
            loaded[table] += _load_part(connection, tables[table], shapes[table], checked)
        elif path is not None:
            _write_file(fresh, path, checked)
        progress(member.name, member.size_bytes)
    for name, shape in shapes.items():
        if loaded[name] != shape.rows:
            raise refuse(f"{name} has {loaded[name]} rows instead of {shape.rows}")
    dump.count_on(connection, tables.values())


def _load_part(
    connection: Connection, table: Table, shape: TableShape, chunks: Iterator[bytes]
) -> int:
    """Load one part of a table, whose sum is checked before any of it is believed."""
    lines = b"".join(chunks).splitlines()
    return dump.load(connection, table, shape, lines)


def _checked(member: Member, digest: str) -> Iterator[bytes]:
    """Yield a member's bytes; raises Invalid at their end if they are not those checked before."""
    if member.name == archive.SUMS:
        return
    hasher = hashlib.sha256()
    for chunk in member.chunks:
        hasher.update(chunk)
        yield chunk
    if hasher.hexdigest() != digest:
        raise refuse(f"{member.name} changed while it was read")


def _write_file(fresh: Path, path: str, chunks: Iterator[bytes]) -> None:
    target = fresh / path
    place = fresh
    for folder in path.split("/")[:-1]:
        place /= folder
        place.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        for chunk in chunks:
            file.write(chunk)

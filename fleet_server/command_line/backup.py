"""``edgefleet backup`` and ``edgefleet restore``: on the data folder's machine, not by the API.

A backup holds keys, so it never travels over the network by itself.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console

from fleet_server.clock import SystemClock
from fleet_server.command_line.connection import Target
from fleet_server.command_line.output import AsJson, CommandError, say, show
from fleet_server.settings import Settings, read_settings

if TYPE_CHECKING:
    from fleet_server.backup.contents import Summary

DatabaseUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="SQLAlchemy URL; the default is a SQLite file in the folder."),
]
BackupFile = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]


def backup(
    context: typer.Context,
    file: BackupFile,
    without_keys: Annotated[
        bool,
        typer.Option(help="Leave out private keys and the admin's token; keep those elsewhere."),
    ] = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Copy database, releases, trust and keys of this machine's server into one file.

    The server may run meanwhile. The file holds the keys that sign for the fleet: whoever reads it
    can lead the fleet. Keep it like them.
    """
    from fleet_server.backup.making import make_backup
    from fleet_server.database import Database

    settings = _settings(context, database_url)
    with _progress("copying") as progress, closing(Database(settings.database)) as database:
        made = make_backup(
            file.absolute(),
            settings.data_dir,
            database,
            now_ms=SystemClock().now_ms(),
            with_keys=not without_keys,
            progress=progress,
        )

    def for_people() -> None:
        say(f"{file}: {_outline(made)}")
        if without_keys:
            say(
                "It holds no keys: keep keys/, trust/keys/ and those of pki/ in another safe place."
            )
        else:
            say("It holds the fleet's online keys: keep it like them.")
        say(f"Next: try it by: edgefleet restore --check {file}")

    show(_as_dictionary(made), as_json, for_people)


def restore(
    context: typer.Context,
    file: BackupFile,
    check: Annotated[
        bool, typer.Option("--check", help="Only see whether the backup is whole.")
    ] = False,
    database_url: DatabaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Make the data folder of a server from a backup, into an empty place.

    Give the folder before the command: edgefleet --data-dir FOLDER restore FILE.
    """
    from fleet_server.backup import restoring

    if check:
        try:
            with file.open("rb") as opened:
                checked, _ = restoring.check_backup(opened)
        except OSError as error:
            raise CommandError(f"{file} cannot be read: {error.strerror}.", "") from error
        show(
            _as_dictionary(checked),
            as_json,
            lambda: say(f"{file} is whole: {_outline(checked)}"),
        )
        return
    settings = _settings(context, database_url)
    with _progress("restoring") as progress:
        made = restoring.restore(
            file,
            settings.data_dir.absolute(),
            settings.database_url,
            now_ms=SystemClock().now_ms(),
            progress=progress,
        )

    def for_people() -> None:
        folder = settings.data_dir
        option = "" if folder == Settings().data_dir else f" --data-dir {folder}"
        say(f"{folder}: {_outline(made)}")
        if not made.description.keys:
            say("The backup holds no keys: put keys/, trust/keys/ and those of pki/ back now.")
        say("Devices know more than this server now. Until it has caught up, it only listens.")
        say("Next, at the addresses of the old server:")
        say(f"  edgefleet{option} server --fleet {made.description.fleet}")
        say(f"  edgefleet{option} trust after-restore")

    show(_as_dictionary(made), as_json, for_people)


def _settings(context: typer.Context, database_url: str | None) -> Settings:
    target = context.find_root().obj
    assert isinstance(target, Target)
    return read_settings(os.environ, data_dir=target.data_dir, database_url=database_url)


@contextmanager
def _progress(doing: str) -> Iterator[Callable[[str, int], None]]:
    """Say on a terminal how far it is."""
    done = {"files": 0, "bytes": 0}
    with Console(stderr=True, highlight=False).status(f"{doing} ...") as status:

        def progress(_name: str, size_bytes: int) -> None:
            done["files"] += 1
            done["bytes"] += size_bytes
            status.update(f"{doing}: {done['files']} files, {done['bytes'] / 1e6:.0f} MB")

        yield progress


def _outline(summary: "Summary") -> str:
    description = summary.description
    rows = sum(table.rows for table in description.tables)
    return (
        f"fleet {description.fleet}, {rows} rows, {summary.files} files, "
        f"{summary.size_bytes / 1e6:.1f} MB, by edgefleet {description.edgefleet}"
    )


def _as_dictionary(summary: "Summary") -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(summary)
    return found

"""The ``edgefleet`` command: one file per noun; commands parse, call the API and print.

Nothing is decided here. Errors become a sentence and advice, exit code 1; a wrong command is 2.
"""

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from fleet_server.command_line import (
    audit,
    backup,
    bench,
    broker,
    cohort,
    device_identity,
    fleet,
    model,
    model_compare,
    model_import,
    model_stages,
    rollout,
    server,
    token,
    trust,
)
from fleet_server.command_line.connection import Target
from fleet_server.command_line.output import CommandError, report, say
from fleet_server.errors import DomainError
from fleet_server.settings import PREFIX, Settings

HELP = """Roll out models to a fleet of devices, and take them back.

\b
The first ten minutes:
  edgefleet server                                   start everything, here
  edgefleet device token --label site=lab            a one-time token
  device-agent enroll TOKEN && device-agent run      on the device
  edgefleet cohort create lab --label site=lab       name a part of the fleet
  fleet-simulator models                             three releases to try it with
  fleet-simulator live --devices 20 --label site=lab
  edgefleet model push digits models/1.0.0 --version 1.0.0 --wait
  edgefleet rollout start digits 1.0.0 --cohort lab --template dev
  edgefleet rollout watch

\b
Something is wrong: edgefleet rollout rollback; for the whole fleet: edgefleet stop.
Every command explains itself by --help and speaks JSON by --json.
"""

app = typer.Typer(
    name="edgefleet",
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("server")(server.server)
app.add_typer(device_identity.app, name="device")
app.add_typer(cohort.app, name="cohort")
app.add_typer(model.app, name="model")
model.app.add_typer(model_import.app)
model.app.add_typer(model_stages.app)
model.app.add_typer(model_compare.app)
app.add_typer(bench.app, name="bench")
app.add_typer(rollout.app, name="rollout")
app.command("stop")(fleet.stop)
app.add_typer(token.app, name="token")
app.add_typer(audit.app, name="audit")
app.add_typer(broker.app, name="broker")
app.add_typer(trust.app, name="trust")
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"edgefleet {metadata.version('edgefleet')}")
        raise typer.Exit


@app.callback()
def choose_server(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The server (EDGEFLEET_URL); default: the one of the data folder.",
        ),
    ] = None,
    api_token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="TOKEN",
            help="An operator's token (EDGEFLEET_TOKEN); default: the data folder's. Better in "
            "the variable: other users see a command's words.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The data folder of a server on this machine (EDGEFLEET_DATA_DIR; default: "
            "~/.local/share/edgefleet).",
        ),
    ] = None,
    change_ticket: Annotated[
        str,
        typer.Option(
            metavar="TICKET",
            help="The change ticket, for the audit (EDGEFLEET_CHANGE_TICKET).",
        ),
    ] = "",
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Print it."),
    ] = False,
) -> None:
    """Take the options that say which server is meant."""
    folder = data_dir or os.environ.get(f"{PREFIX}DATA_DIR")
    context.obj = Target(
        url=url or os.environ.get(f"{PREFIX}URL", ""),
        token=api_token or os.environ.get(f"{PREFIX}TOKEN", ""),
        data_dir=Path(folder).expanduser() if folder else Settings().data_dir,
        change_ticket=change_ticket or os.environ.get(f"{PREFIX}CHANGE_TICKET", ""),
    )


def main() -> None:
    """Run the command that the program's arguments ask for."""
    try:
        app()
    except CommandError as error:
        _end(error)
    except DomainError as error:
        _end(CommandError(error.detail, error.advice))


def _end(error: CommandError) -> None:
    report(error, as_json="--json" in sys.argv)
    sys.exit(1)

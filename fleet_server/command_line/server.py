"""``edgefleet server``: starts everything in one process and says how to go on."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fleet_server import data_folder
from fleet_server.command_line.connection import Target
from fleet_server.command_line.output import say
from fleet_server.settings import Settings, read_settings

LOG_FILE = "server.log"


def server(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on (127.0.0.1).")
    ] = None,
    port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Port of the API (8420); 0 takes a free one.")
    ] = None,
    public_url: Annotated[
        str | None, typer.Option(metavar="URL", help="URL at which people reach this server.")
    ] = None,
    device_listen: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on for devices, and of a broker that this server starts "
            "(as --host).",
        ),
    ] = None,
    device_port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="Port for devices, with TLS (8421); 0 takes a free one."),
    ] = None,
    device_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="https:// URL at which devices reach this server."),
    ] = None,
    fleet: Annotated[
        str | None,
        typer.Option(metavar="FLEET", help="Name of the fleet (home); not to be changed later."),
    ] = None,
    environment: Annotated[
        str | None, typer.Option(metavar="NAME", help="dev, staging or production (dev).")
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option(metavar="BROKER", help="auto, embedded, mosquitto, or an mqtt:// URL (auto)."),
    ] = None,
    broker_port: Annotated[
        int | None, typer.Option(metavar="PORT", help="Port of a broker that this server starts.")
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="SQLAlchemy URL; the default is a SQLite file."),
    ] = None,
    controller_interval_ms: Annotated[
        int | None, typer.Option(metavar="MS", help="How often rollouts are looked at (1000).")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error (info).")
    ] = None,
    log_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where the log goes; by default to standard error, or, at a terminal, to "
            "server.log in the data folder.",
        ),
    ] = None,
) -> None:
    """Start the server: API, broker and database in one process.

    Every option can also be set by an environment variable: EDGEFLEET_ and the option's name in
    capitals, for example EDGEFLEET_BROKER_PORT. There are more settings than options:
    docs/reference/settings.md has them all.
    """
    # The other commands need none of what the server is made of, and start in a third of the time.
    from fleet_server import logs, serving

    target = context.find_root().obj
    assert isinstance(target, Target)
    settings = _with_quiet_terminal(
        read_settings(
            os.environ,
            data_dir=target.data_dir,
            host=host,
            port=port,
            public_url=public_url,
            device_listen=device_listen,
            device_port=device_port,
            device_url=device_url,
            fleet=fleet,
            environment=environment,
            broker=broker,
            broker_port=broker_port,
            database_url=database_url,
            controller_interval_ms=controller_interval_ms,
            log_level=log_level,
            log_file=log_file,
        )
    )
    logs.configure(settings.log_level, settings.log_file)
    serving.run(settings, _welcome)


def _with_quiet_terminal(settings: Settings) -> Settings:
    """Let the log go to a file where it would bury what a person at a terminal is told."""
    if settings.log_file or not sys.stderr.isatty():
        return settings
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        # Whoever holds the folder says what is wrong with it.
        return settings
    return replace(settings, log_file=str(settings.data_dir / LOG_FILE))


def _welcome(settings: Settings, broker_url: str, broker_kind: str, holds_root_key: bool) -> None:
    data_folder.remember_url(settings.data_dir, settings.url)
    # The command line finds the default folder by itself.
    option = "" if settings.data_dir == Settings().data_dir else f" --data-dir {settings.data_dir}"
    trying_out = (
        "FOR TRYING OUT: all keys were made here, and whoever reads this disk owns the fleet.",
        f"  edgefleet{option} trust rotate root --offline DIR    takes them away, for production",
        "",
    )
    for line in (
        f"edgefleet server of fleet {settings.fleet!r} ({settings.environment})",
        f"  API            {settings.url}",
        f"  for devices    {settings.devices_url}",
        f"  documentation  {settings.url}/docs",
        f"  admin token    {settings.data_dir / data_folder.TOKEN_FILE}",
        f"  broker         {broker_url} ({broker_kind})",
        f"  data           {_short(settings.data_dir)}",
        f"  log            {settings.log_file or 'standard error'}",
        "",
        *(trying_out if holds_root_key else ()),
        "In another terminal, bring a device in:",
        f"  edgefleet{option} device token --label site=lab",
        "  device-agent enroll TOKEN && device-agent run",
        "",
        "Ctrl-C stops the server; devices go on with what they run.",
    ):
        say(line)


def _short(path: Path) -> str:
    try:
        return f"~/{path.relative_to(Path.home())}"
    except ValueError:
        return str(path)

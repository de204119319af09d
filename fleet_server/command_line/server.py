"""``edgefleet server``: starts everything in one process and says how to go on."""

import os
from pathlib import Path
from typing import Annotated

import typer

from fleet_server import data_folder
from fleet_server.command_line.connection import Target
from fleet_server.command_line.output import say
from fleet_server.settings import Settings, read_settings


def server(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API; 0 takes a free one.")] = None,
    public_url: Annotated[
        str | None, typer.Option(help="URL at which devices reach this server.")
    ] = None,
    fleet: Annotated[str | None, typer.Option(help="Name of the fleet.")] = None,
    environment: Annotated[str | None, typer.Option(help="dev, staging or production.")] = None,
    broker: Annotated[
        str | None, typer.Option(help="auto, embedded, mosquitto, or an mqtt:// URL.")
    ] = None,
    broker_port: Annotated[
        int | None, typer.Option(help="Port of a broker that this server starts.")
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(help="SQLAlchemy URL; the default is a SQLite file.")
    ] = None,
    controller_interval_ms: Annotated[
        int | None, typer.Option(help="How often rollouts are looked at.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_file: Annotated[
        str | None, typer.Option(help="Where the log goes; standard error by default.")
    ] = None,
) -> None:
    """Start the server: API, broker, database and controller in one process.

    Every option can also be set by an environment variable: EDGEFLEET_ and the option's name in
    capitals, for example EDGEFLEET_BROKER_PORT.
    """
    # The other commands need none of what the server is made of, and start in a third of the time.
    from fleet_server import logs, serving

    target = context.find_root().obj
    assert isinstance(target, Target)
    settings = read_settings(
        os.environ,
        data_dir=target.data_dir,
        host=host,
        port=port,
        public_url=public_url,
        fleet=fleet,
        environment=environment,
        broker=broker,
        broker_port=broker_port,
        database_url=database_url,
        controller_interval_ms=controller_interval_ms,
        log_level=log_level,
        log_file=log_file,
    )
    logs.configure(settings.log_level, settings.log_file)
    serving.run(settings, _welcome)


def _welcome(settings: Settings, broker_url: str, broker_kind: str) -> None:
    data_folder.remember_url(settings.data_dir, settings.url)
    # The command line finds the default folder by itself.
    option = "" if settings.data_dir == Settings().data_dir else f" --data-dir {settings.data_dir}"
    for line in (
        f"edgefleet server of fleet {settings.fleet!r} ({settings.environment})",
        f"  API            {settings.url}",
        f"  documentation  {settings.url}/docs",
        f"  admin token    {settings.data_dir / data_folder.TOKEN_FILE}",
        f"  broker         {broker_url} ({broker_kind})",
        f"  data           {_short(settings.data_dir)}",
        "",
        "Bring a device in:",
        f"  edgefleet{option} device token --label site=lab",
        "  device-agent enroll TOKEN && device-agent run",
        "",
        "Stop with Ctrl-C.",
    ):
        say(line)


def _short(path: Path) -> str:
    try:
        return f"~/{path.relative_to(Path.home())}"
    except ValueError:
        return str(path)

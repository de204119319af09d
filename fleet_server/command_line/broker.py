"""``edgefleet broker``: what a broker that somebody else runs has to know."""

from pathlib import Path
from typing import Annotated

import typer

from fleet_server.broker.limits import MIB
from fleet_server.broker.mosquitto_configuration import MosquittoSecurity, configuration
from fleet_server.command_line.connection import Target
from fleet_server.command_line.output import CommandError, say
from fleet_server.trust import durable

app = typer.Typer(no_args_is_help=True, help="Prepare a broker that somebody else runs.")


@app.command("config")
def write_configuration(
    context: typer.Context,
    output: Annotated[Path, typer.Option(help="The folder for the files; made if missing.")],
    listen: Annotated[str, typer.Option(help="The address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="The port to listen on.", min=1, max=65_535)] = 8883,
    place: Annotated[
        Path | None,
        typer.Option(help="Where the folder will lie on the broker's machine (--output)."),
    ] = None,
) -> None:
    """Write configuration, access list and certificates for a Mosquitto, from the data folder.

    Run it again after a rotation or a revocation, bring the files there, and send Mosquitto
    SIGHUP. The folder holds the broker's private key.
    """
    target = context.find_root().obj
    assert isinstance(target, Target)
    pki = target.data_dir / "pki"
    files = {
        "clients.pem": pki / "clients.pem",
        "revoked.pem": pki / "revoked.pem",
        "server.pem": pki / "server.pem",
        "access-list": pki / "access-list",
    }
    there = place or output.resolve()
    try:
        data_of = {name: path.read_bytes() for name, path in files.items()}
        output.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, data in data_of.items():
            # For its owner alone from the first byte on: one of them is the broker's key.
            durable.write_file(output / name, data)
        text = configuration(
            folder=there,
            host=listen,
            port=port,
            max_packet_size_bytes=MIB,
            security=MosquittoSecurity(
                authorities=there / "clients.pem",
                revoked=there / "revoked.pem",
                certificate=there / "server.pem",
                key=there / "server.pem",
                access_list=there / "access-list",
            ),
        )
        (output / "mosquitto.conf").write_text(text)
    except OSError as error:
        raise CommandError(
            f"{error.filename}: {error.strerror}.",
            "Run this on the server's machine, after its first start, with its --data-dir.",
        ) from error
    say(f"Written to {output}. Start it by: mosquitto -c {there / 'mosquitto.conf'}")
    say(f"Then: edgefleet server --broker mqtts://HOST:{port}, with HOST in EDGEFLEET_DEVICE_URL")

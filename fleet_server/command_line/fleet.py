"""``edgefleet stop``: halts every forward move of the fleet, or lets it go on."""

import sys
from typing import Annotated

import typer

from fleet_server.command_line.connection import connect
from fleet_server.command_line.output import AsJson, CommandError, say, show


def stop(
    context: typer.Context,
    reason: Annotated[
        str,
        typer.Option(metavar="WORDS", help="Why; on a terminal it is asked for if left out."),
    ] = "",
    lift: Annotated[bool, typer.Option("--lift", help="Let the fleet move again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop the whole fleet: nothing new starts.

    Rollbacks go on, and running models keep running.
    """
    if not lift and not reason.strip() and sys.stdin.isatty() and not as_json:
        reason = typer.prompt("Why? Those who look later will want to know")
    if not lift and not reason.strip():
        raise CommandError(
            "A stop needs a reason.", 'Give it by --reason, for example: --reason "wrong labels".'
        )
    body = {"stopped": not lift, "reason": reason}
    stopped = connect(context).post("/v1/fleet/stop", body)
    show(
        stopped,
        as_json,
        lambda: say(
            "The fleet may move again."
            if lift
            else "The fleet is stopped. Lift it by: edgefleet stop --lift"
        ),
    )

"""``edgefleet stop``: halts every forward move of the fleet, or lets it go on."""

from typing import Annotated

import typer

from fleet_server.command_line.connection import connect
from fleet_server.command_line.output import AsJson, CommandError, say, show


def stop(
    context: typer.Context,
    reason: Annotated[str, typer.Option(help="Why; those who look later will want to know.")] = "",
    lift: Annotated[bool, typer.Option("--lift", help="Let the fleet go on.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop the whole fleet: nothing new starts. Rollbacks go on, running models keep running."""
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

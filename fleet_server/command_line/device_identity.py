"""``edgefleet device``: tokens that were made, and how a device leaves or is replaced."""

from typing import Annotated, Any
from urllib.parse import quote

import typer

from fleet_server.clock import SystemClock
from fleet_server.command_line.connection import connect
from fleet_server.command_line.device import HOUR_MS, Name, app, joined
from fleet_server.command_line.output import AsJson, ago, print_table, say, show

__all__ = ["app"]


@app.command("tokens")
def list_tokens(context: typer.Context, as_json: AsJson = False) -> None:
    """List the enrolment tokens: for whom, how many were used, and until when."""
    found = connect(context).get("/v1/enrolment-tokens")
    now_ms = SystemClock().now_ms()
    show(
        found,
        as_json,
        lambda: print_table(
            ("TOKEN", "FOR", "USED", "LABELS", "MADE", "STATE"),
            (
                (
                    item["id"],
                    item["device"] or (f"{item['prefix']}*" if item["prefix"] else "any name"),
                    f"{item['used']} of {item['count']}",
                    joined(item["labels"]),
                    ago(item["created_ms"], now_ms),
                    _state(item, now_ms),
                )
                for item in found
            ),
            empty="No tokens yet. Make one by: edgefleet device token",
        ),
    )


@app.command("token-revoke")
def revoke_token(
    context: typer.Context,
    token: Annotated[str, typer.Argument(help="Its id, from edgefleet device tokens.")],
    as_json: AsJson = False,
) -> None:
    """Make an enrolment token worthless at once. Devices that it enrolled stay."""
    done = connect(context).delete(f"/v1/enrolment-tokens/{quote(token, safe='')}")
    said = f"The token {token} is revoked; {done['used']} devices had used it."
    show(done, as_json, lambda: say(said))


@app.command("retire")
def retire(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Take a device out of the fleet: its certificates are revoked, its connection ends.

    Its model goes on answering. To have it back: edgefleet device replace.
    """
    done = connect(context).post(f"/v1/devices/{quote(name, safe='')}/retire", {})
    show(done, as_json, lambda: say(f"{name} is retired."))


@app.command("replace")
def replace(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Revoke what a device holds, and print a token that enrols one anew under its name.

    For broken hardware, for an identity that two devices hold, and for a retired device.
    """
    made = connect(context).post(f"/v1/devices/{quote(name, safe='')}/replace", {})
    show(made, as_json, lambda: say(made["token"]))


@app.command("clear-alarm")
def clear_alarm(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Clear the alarm about a device, once its cause is known."""
    done = connect(context).delete(f"/v1/devices/{quote(name, safe='')}/alarm")
    show(done, as_json, lambda: say(f"The alarm about {name} is cleared: {done['cleared']}."))


def _state(item: dict[str, Any], now_ms: int) -> str:
    if item["revoked_ms"]:
        return "revoked"
    if item["used"] >= item["count"]:
        return "used"
    if item["expires_ms"] <= now_ms:
        return "expired"
    return f"{(item['expires_ms'] - now_ms) // HOUR_MS} h left"

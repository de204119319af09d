"""``edgefleet token``: who may operate the fleet, and until when."""

from typing import Annotated
from urllib.parse import quote

import typer

from fleet_server.clock import SystemClock
from fleet_server.command_line.connection import connect
from fleet_server.command_line.output import AsJson, ago, print_table, say, show

app = typer.Typer(no_args_is_help=True, help="API tokens of people and programs.")
DAY_MS = 24 * 3_600_000


@app.command("create")
def create_token(
    context: typer.Context,
    user: Annotated[str, typer.Argument(help="Whose it is: ann@example.org, ci-vision.")],
    role: Annotated[
        list[str], typer.Option(help="viewer, operator, approver, admin, or one of your own.")
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(help="Only these models: a name, or a beginning and *, as in 'vision-*'."),
    ] = None,
    fleet: Annotated[list[str] | None, typer.Option(help="Only these fleets.")] = None,
    days: Annotated[int, typer.Option(help="How long it is valid.", min=1, max=366)] = 90,
    as_json: AsJson = False,
) -> None:
    """Make a token. It is shown once; the server keeps only its hash."""
    body = {
        "user": user,
        "roles": role,
        "models": model or [],
        "fleets": fleet or [],
        "valid_ms": days * DAY_MS,
    }
    made = connect(context).post("/v1/tokens", body)
    # The token alone on standard output, so that a script can take it as it is.
    show(made, as_json, lambda: say(made["token"]))


@app.command("list")
def list_tokens(context: typer.Context, as_json: AsJson = False) -> None:
    """List the tokens: whose they are, what they allow, and until when."""
    found = connect(context).get("/v1/tokens")["tokens"]
    now_ms = SystemClock().now_ms()
    show(
        found,
        as_json,
        lambda: print_table(
            ("TOKEN", "USER", "ROLES", "MODELS", "FLEETS", "MADE", "STATE"),
            (
                (
                    item["id"],
                    item["user"],
                    " ".join(item["roles"]),
                    " ".join(item["models"]) or "all",
                    " ".join(item["fleets"]) or "all",
                    f"{ago(item['created_ms'], now_ms)} by {item['created_by']}",
                    _state(item["revoked_ms"], item["expires_ms"], now_ms),
                )
                for item in found
            ),
            empty="There are no tokens.",
        ),
    )


@app.command("revoke")
def revoke_token(
    context: typer.Context,
    token: Annotated[str, typer.Argument(help="Its id, from edgefleet token list.")],
    as_json: AsJson = False,
) -> None:
    """Make a token worthless at once."""
    done = connect(context).delete(f"/v1/tokens/{quote(token, safe='')}")
    show(done, as_json, lambda: say(f"The token {done['id']} of {done['user']} is revoked."))


def _state(revoked_ms: int, expires_ms: int, now_ms: int) -> str:
    if revoked_ms:
        return "revoked"
    if not expires_ms:
        return "never expires"
    days = (expires_ms - now_ms) // DAY_MS
    return "expired" if expires_ms <= now_ms else f"{days} d left"

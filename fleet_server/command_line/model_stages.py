"""``edgefleet model list``, ``promote`` and ``archive``: find releases, and let them go further."""

from typing import Annotated, Any
from urllib.parse import quote

import typer

from fleet_server.clock import SystemClock
from fleet_server.command_line.connection import connect
from fleet_server.command_line.output import AsJson, ago, print_table, say, show

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="MODEL")]
Version = Annotated[str, typer.Argument(metavar="VERSION")]
Reason = Annotated[str, typer.Option(metavar="WORDS", help="Why, for the audit.")]


@app.command("list")
def list_models(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="Only this model, release by release.")
    ] = "",
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Only with this tag.")] = None,
    search: Annotated[
        str | None,
        typer.Option(
            metavar="WORD",
            help="Only with this word in name, version, tags, owner, commit, data or notes.",
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Only staging, production or archived."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the models, or one model's releases: all, or those that are looked for."""
    connection = connect(context)
    wanted = {"tag": tag, "search": search, "stage": stage}
    looked_for = any(value is not None for value in wanted.values())
    if not name:
        models = connection.get("/v1/models", **wanted)["models"]
        none = "No models yet. Push the first by: edgefleet model push"
        show(
            models,
            as_json,
            lambda: print_table(
                ("MODEL", "RELEASES", "NEWEST STAGED", "PRODUCTION", "TAGS"),
                map(_model_row, models),
                empty="Nothing fits." if looked_for else none,
            ),
        )
        return
    path = f"/v1/models/{quote(name, safe='')}/releases"
    releases = connection.get(path, **wanted)["releases"]
    now_ms = SystemClock().now_ms()
    columns = ("VERSION", "STATE", "STAGE", "PUSHED", "BY", "TAGS", "DIGEST", "REFUSED BECAUSE")
    show(
        releases,
        as_json,
        lambda: print_table(
            columns, (_release_row(item, now_ms) for item in releases), empty="Nothing fits."
        ),
    )


@app.command("promote")
def promote_release(
    context: typer.Context,
    name: Name,
    version: Version,
    reason: Reason,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Although it has not shown what production asks for; needs force-gate.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Promote a staged release to production; production fleets take no other."""
    _move(context, name, version, "promote", {"reason": reason, "force": force}, as_json)


@app.command("archive")
def archive_release(
    context: typer.Context, name: Name, version: Version, reason: Reason, as_json: AsJson = False
) -> None:
    """Archive a release: no rollout goes to it any more; what runs is not touched."""
    _move(context, name, version, "archive", {"reason": reason}, as_json)


def _move(
    context: typer.Context,
    name: str,
    version: str,
    move: str,
    body: dict[str, object],
    as_json: bool,
) -> None:
    path = f"/v1/models/{quote(name, safe='')}/releases/{quote(version, safe='')}/{move}"
    release = connect(context).post(path, body)
    where = "in production" if release["stage"] == "production" else release["stage"]
    show(release, as_json, lambda: say(f"{release['model']} {release['version']} is {where}."))


def _model_row(model: Any) -> tuple[object, ...]:
    return (
        model["model"],
        model["releases"],
        model["newest_staged"] or "-",
        model["production"] or "-",
        ", ".join(model["tags"]),
    )


def _release_row(item: Any, now_ms: int) -> tuple[object, ...]:
    return (
        item["version"],
        item["state"],
        item["stage"] if item["state"] == "staged" else "-",
        ago(item["received_ms"], now_ms),
        item["pushed_by"],
        ", ".join(item["metadata"].get("tags", [])),
        (item["digest"] or "-")[:12],
        item["problem"]["detail"] if item["problem"] else "",
    )

"""``edgefleet rollout``: move a cohort to a release, watch it, and take it back.

Commands that are given no rollout mean the newest one. Exit codes of ``watch --until-done``: 0 it
completed, 3 it was rolled back, 4 it was held as inconclusive or aborted.
"""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.live import Live

from fleet_server.command_line.connection import Connection, connect
from fleet_server.command_line.output import AsJson, CommandError, print_table, say, show, tell
from fleet_server.command_line.rollout_view import fingerprint, picture, plan_page

app = typer.Typer(no_args_is_help=True, help="Move a cohort to a release, and take it back.")

EXIT_COMPLETED, EXIT_ROLLED_BACK, EXIT_INCONCLUSIVE, EXIT_INTERRUPTED = 0, 3, 4, 130
POLL_S = 1.0
PLAN_BYTES = 256 * 1024

ROLLOUT_ID = re.compile(r"[0-9a-f]{12}")

Rollout = Annotated[
    str, typer.Argument(metavar="ROLLOUT", help="Its id; the newest one if left out.")
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")]
Cohort = Annotated[str, typer.Option(metavar="COHORT", help="Whose devices get the release.")]
Template = Annotated[
    str,
    typer.Option(
        metavar="TEMPLATE",
        help="careful (takes days), dev (about a minute) or direct (full at once).",
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", metavar="FILE", help="A plan of your own as JSON, instead."),
]


@app.command("plan")
def try_plan(
    context: typer.Context,
    model: Model,
    cohort: Cohort = "default",
    template: Template = "careful",
    plan: PlanFile = None,
    as_json: AsJson = False,
) -> None:
    """Say what a plan would do to a cohort; nothing is changed."""
    body = {"cohort": cohort, "model": model, "template": template, "plan": _read_plan(plan)}
    found = connect(context).post("/v1/rollouts/plan", body)
    show(found, as_json, lambda: Console(highlight=False).print(plan_page(found)))


@app.command("create")
def create_rollout(
    context: typer.Context,
    model: Model,
    version: Annotated[str, typer.Argument(metavar="VERSION")],
    cohort: Cohort = "default",
    template: Template = "careful",
    plan: PlanFile = None,
    as_json: AsJson = False,
) -> None:
    """Create a rollout as a draft; nothing happens until it is started."""
    made = _create(connect(context), model, version, cohort, template, plan, start=False)
    show(
        made,
        as_json,
        lambda: say(f"{made['id']} created; start it by: edgefleet rollout start {made['id']}"),
    )


@app.command("start")
def start_rollout(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="MODEL|ROLLOUT", help="A model, or the id of a draft.")
    ],
    version: Annotated[
        str, typer.Argument(metavar="VERSION", help="With a model: which release of it.")
    ] = "",
    cohort: Cohort = "default",
    template: Template = "careful",
    plan: PlanFile = None,
    as_json: AsJson = False,
) -> None:
    """Start a rollout of a model's release, or one that was created before."""
    server = connect(context)
    if not version and not ROLLOUT_ID.fullmatch(what):
        raise CommandError(
            f"Which release of {what}? {what!r} is not the id of a rollout.",
            f"See the releases by: edgefleet model list {what}; the drafts by: edgefleet rollout "
            "list",
        )
    if version:
        started = _create(server, what, version, cohort, template, plan, start=True)
    else:
        started = server.post(f"{_path(what)}/start")
    show(
        started,
        as_json,
        lambda: say(f"{started['id']} started; follow it by: edgefleet rollout watch"),
    )


@app.command("watch")
def watch_rollout(
    context: typer.Context,
    rollout: Rollout = "",
    until_done: Annotated[
        bool,
        typer.Option(
            "--until-done",
            help="Also end when it is held, and exit with 0 (completed), 3 (rolled back) or 4 "
            "(held or aborted).",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Follow a rollout until it ends; Ctrl-C ends the watching only.

    With --json, a line is printed whenever something changes.
    """
    server = connect(context)
    pages = _pages(server, _newest(server, rollout), until_done=until_done)
    code = _follow(pages, as_json)
    if until_done:
        raise typer.Exit(code)


@app.command("pause")
def pause_rollout(context: typer.Context, rollout: Rollout = "", as_json: AsJson = False) -> None:
    """Let nobody start who has not; failures still roll back."""
    _act(context, rollout, "pause", None, as_json)


@app.command("resume")
def resume_rollout(context: typer.Context, rollout: Rollout = "", as_json: AsJson = False) -> None:
    """Go on where it was paused or held."""
    _act(context, rollout, "resume", None, as_json)


@app.command("abort")
def abort_rollout(context: typer.Context, rollout: Rollout = "", as_json: AsJson = False) -> None:
    """Cancel what is outstanding; devices that have changed stay as they are."""
    _act(context, rollout, "abort", None, as_json)


@app.command("rollback")
def roll_back_rollout(
    context: typer.Context,
    rollout: Rollout = "",
    reason: Annotated[str, typer.Option(metavar="WORDS", help="Why; for the audit.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow it until all devices that are online are back.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring back what ran before, everywhere, by one broadcast.

    Asks before it does, but only on a terminal; a script is never asked.
    """
    server = connect(context)
    rollout = _newest(server, rollout)
    if sys.stdin.isatty() and not yes and not as_json:
        _ask(server.get(_path(rollout)))
    _act(context, rollout, "rollback", {"reason": reason}, as_json and not wait)
    if wait:
        _follow(_pages(server, rollout, until_done=True), as_json)


@app.command("show")
def show_rollout(context: typer.Context, rollout: Rollout = "", as_json: AsJson = False) -> None:
    """Show where a rollout stands, once; --json has all its evidence."""
    server = connect(context)
    found = server.get(_path(_newest(server, rollout)))
    show(found, as_json, lambda: Console(highlight=False).print(picture(found)))


@app.command("list")
def list_rollouts(
    context: typer.Context,
    count: Annotated[
        int, typer.Option(min=1, max=1000, metavar="NUMBER", help="How many at most.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """List rollouts, the newest first."""
    found = connect(context).get("/v1/rollouts", count=count)
    show(
        found,
        as_json,
        lambda: print_table(
            ("ROLLOUT", "MODEL", "VERSION", "COHORT", "STATE", "STAGE"),
            (
                (
                    item["id"],
                    item["model"],
                    item["version"],
                    item["cohort"],
                    item["state"] + (" (held)" if item["held"] else ""),
                    item["stage"],
                )
                for item in found
            ),
            empty="No rollouts yet. Start one by: edgefleet rollout start MODEL VERSION",
        ),
    )


@app.command("explain")
def explain_rollout(context: typer.Context, rollout: Rollout = "", as_json: AsJson = False) -> None:
    """Say in sentences why a rollout stands where it does."""
    server = connect(context)
    found = server.get(f"{_path(_newest(server, rollout))}/explain")
    show(found, as_json, lambda: tell(found["explanation"]))


def _ask(shown: dict[str, Any]) -> None:
    brief, running = shown["brief"], shown["exposure"]["running"]
    say(
        f"Rollout {brief['id']}, {brief['model']} {brief['version']} in cohort "
        f"{brief['cohort']}, is {str(brief['state']).replace('_', ' ')}; "
        f"{running.get('candidate', 0)} devices run it. "
        f"They go back to {shown['stable_version'] or 'nothing'}."
    )
    if not typer.confirm("Roll back?"):
        raise CommandError("Nothing was changed.", "To stop new starts: edgefleet rollout pause")


def _follow(pages: Iterator[dict[str, Any]], as_json: bool) -> int:
    """Show pages until there are no more; returns the exit code of how it ended."""
    try:
        return _print_lines(pages) if as_json else _draw(pages)
    except KeyboardInterrupt:
        if not as_json:
            say("Not watched any more; the rollout goes on without you.")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _pages(server: Connection, rollout: str, *, until_done: bool) -> Iterator[dict[str, Any]]:
    """Yield the rollout as it is, again and again, until it ends; a held one may be resumed."""
    while True:
        shown: dict[str, Any] = server.get(_path(rollout))
        yield shown
        if _ended(shown) is not None and (until_done or not shown["brief"]["held"]):
            return
        time.sleep(POLL_S)


def _print_lines(pages: Iterator[dict[str, Any]]) -> int:
    seen, code = "", None
    for shown in pages:
        if seen != fingerprint(shown):
            seen = fingerprint(shown)
            sys.stdout.write(json.dumps(shown) + "\n")
            sys.stdout.flush()
        code = _ended(shown)
    return code or EXIT_COMPLETED


def _draw(pages: Iterator[dict[str, Any]]) -> int:
    explanation, code = "", None
    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        for shown in pages:
            live.update(picture(shown), refresh=True)
            explanation, code = shown["explanation"], _ended(shown)
    tell(explanation)
    return code or EXIT_COMPLETED


def _create(
    server: Connection,
    model: str,
    version: str,
    cohort: str,
    template: str,
    plan: Path | None,
    *,
    start: bool,
) -> Any:
    body = {
        "model": model,
        "version": version,
        "cohort": cohort,
        "template": template,
        "plan": _read_plan(plan),
        "start": start,
    }
    return server.post("/v1/rollouts", body)


def _act(
    context: typer.Context, rollout: str, action: str, body: dict[str, str] | None, as_json: bool
) -> None:
    server = connect(context)
    done = server.post(f"{_path(_newest(server, rollout))}/{action}", body)
    state = str(done["state"]).replace("_", " ")
    show(done, as_json, lambda: say(f"{done['id']} of {done['model']} {done['version']}: {state}"))


def _path(rollout: str) -> str:
    return f"/v1/rollouts/{quote(rollout, safe='')}"


def _newest(server: Connection, rollout: str) -> str:
    if rollout:
        return rollout
    found = server.get("/v1/rollouts", count=1)
    if not found:
        raise CommandError(
            "There are no rollouts.", "Start one: edgefleet rollout start MODEL VERSION"
        )
    return str(found[0]["id"])


def _ended(shown: dict[str, Any]) -> int | None:
    """Return the exit code of a rollout that has ended or is held, None while it is under way."""
    brief = shown["brief"]
    if brief["held"] and brief["state"] == "paused":
        return EXIT_INCONCLUSIVE
    return {
        "completed": EXIT_COMPLETED,
        "rolled_back": EXIT_ROLLED_BACK,
        "aborted": EXIT_INCONCLUSIVE,
    }.get(brief["state"])


def _read_plan(path: Path | None) -> Any:
    if path is None:
        return None
    try:
        if path.stat().st_size > PLAN_BYTES:
            raise CommandError(f"{path} is too large for a plan.", "A plan is a few KB of JSON.")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(
            f"{path} cannot be read as JSON: {error}.",
            "Start from: edgefleet rollout plan MODEL --template careful --json",
        ) from error

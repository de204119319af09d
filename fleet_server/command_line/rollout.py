"""``edgefleet rollout``: move a cohort to a release, watch it, and take it back.

Commands that are given no rollout mean the newest one. Exit codes of ``watch --until-done``: 0 it
completed, 3 it was rolled back, 4 it was held as inconclusive or aborted.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from fleet_server.command_line.connection import Connection, connect
from fleet_server.command_line.output import AsJson, CommandError, print_table, say, show
from fleet_server.command_line.rollout_view import fingerprint, picture

app = typer.Typer(no_args_is_help=True, help="Move a cohort to a release, and take it back.")

EXIT_COMPLETED, EXIT_ROLLED_BACK, EXIT_INCONCLUSIVE = 0, 3, 4
POLL_S = 1.0
PLAN_BYTES = 256 * 1024

Rollout = Annotated[str, typer.Argument(help="Its id; the newest one if left out.")]
Cohort = Annotated[str, typer.Option(help="Whose devices get the release.")]
Template = Annotated[str, typer.Option(help="dev, careful or direct.")]
PlanFile = Annotated[
    Path | None, typer.Option("--plan", help="A plan of your own, as a JSON file.")
]


@app.command("plan")
def try_plan(
    context: typer.Context,
    model: str,
    cohort: Cohort = "default",
    template: Template = "careful",
    plan: PlanFile = None,
    as_json: AsJson = False,
) -> None:
    """Say what a plan would do: devices per stage, and how the error probability is spent."""
    body = {"cohort": cohort, "model": model, "template": template, "plan": _read_plan(plan)}
    found = connect(context).post("/v1/rollouts/plan", body)
    show(found, as_json, lambda: _print_plan(found))


@app.command("create")
def create_rollout(
    context: typer.Context,
    model: str,
    version: str,
    cohort: Cohort = "default",
    template: Template = "careful",
    plan: PlanFile = None,
    as_json: AsJson = False,
) -> None:
    """Create a rollout as a draft; nothing happens until it is started."""
    made = _create(connect(context), model, version, cohort, template, plan, start=False)
    show(made, as_json, lambda: say(f"{made['id']} created; edgefleet rollout start {made['id']}"))


@app.command("start")
def start_rollout(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help="A draft's id, or a model.")],
    version: Annotated[str, typer.Argument(help="The model's version, to create and start.")] = "",
    cohort: Cohort = "default",
    template: Template = "careful",
    plan: PlanFile = None,
    as_json: AsJson = False,
) -> None:
    """Start a draft, or create and start in one go: edgefleet rollout start MODEL VERSION."""
    server = connect(context)
    if version:
        started = _create(server, what, version, cohort, template, plan, start=True)
    else:
        started = server.post(f"/v1/rollouts/{what}/start")
    show(
        started,
        as_json,
        lambda: say(f"{started['id']} started; edgefleet rollout watch {started['id']}"),
    )


@app.command("watch")
def watch_rollout(
    context: typer.Context,
    rollout: Rollout = "",
    until_done: Annotated[
        bool,
        typer.Option(help="Exit when it ends: 0 completed, 3 rolled back, 4 held or aborted."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show stages, gates and devices as they change; --json prints a line per change."""
    server = connect(context)
    pages = _pages(server, _newest(server, rollout), until_done=until_done)
    code = _print_lines(pages) if as_json else _draw(pages)
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
    reason: Annotated[str, typer.Option(help="For the audit.")] = "",
    as_json: AsJson = False,
) -> None:
    """Bring back what ran before, everywhere, by one broadcast."""
    _act(context, rollout, "rollback", {"reason": reason}, as_json)


@app.command("show")
def show_rollout(context: typer.Context, rollout: Rollout = "", as_json: AsJson = False) -> None:
    """Show everything about a rollout; the evidence is in --json."""
    server = connect(context)
    found = server.get(f"/v1/rollouts/{_newest(server, rollout)}")
    show(found, as_json, lambda: Console(highlight=False).print(picture(found)))


@app.command("list")
def list_rollouts(
    context: typer.Context,
    count: Annotated[int, typer.Option(min=1, max=1000)] = 50,
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
            empty="There are no rollouts.",
        ),
    )


@app.command("explain")
def explain_rollout(context: typer.Context, rollout: Rollout = "", as_json: AsJson = False) -> None:
    """Say in sentences, with figures, why a rollout stands where it does."""
    server = connect(context)
    found = server.get(f"/v1/rollouts/{_newest(server, rollout)}/explain")
    show(found, as_json, lambda: say(found["explanation"]))


def _pages(server: Connection, rollout: str, *, until_done: bool) -> Iterator[dict[str, Any]]:
    """Yield the rollout as it is, again and again, until it ends; a held one may be resumed."""
    while True:
        shown: dict[str, Any] = server.get(f"/v1/rollouts/{rollout}")
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
    say(explanation)
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
    done = server.post(f"/v1/rollouts/{_newest(server, rollout)}/{action}", body)
    state = str(done["state"]).replace("_", " ")
    show(done, as_json, lambda: say(f"{done['id']} of {done['model']} {done['version']}: {state}"))


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


def _print_plan(found: dict[str, Any]) -> None:
    if found["first_release"]:
        say("The cohort runs nothing of this model yet: the full stage alone is left of the plan.")
    arms = {arm["stage"]: arm for arm in found["arms"]}
    print_table(
        ("STAGE", "KIND", "PERCENT", "DEVICES", "CONTROL", "SOAK", "DEADLINE"),
        (
            (
                stage["name"],
                stage["kind"],
                f"{stage['percent']:g}",
                arms[stage["name"]]["candidate"],
                arms[stage["name"]]["control"],
                f"{stage['soak_ms'] / 1000:g} s",
                f"{stage['deadline_ms'] / 1000:g} s",
            )
            for stage in found["plan"]["stages"]
        ),
        empty="The plan has no stages.",
    )
    say(f"False alarms over the whole rollout: at most {found['plan']['alpha']:.1%}, spent on")
    print_table(
        ("GUARDRAIL", "STAGE", "LOOK", "ALPHA"),
        (
            (row["guardrail"], row["stage"], row["look"] or "any time", f"{row['alpha']:.2g}")
            for row in found["ledger"]
        ),
        empty="Nothing is judged.",
    )

"""``edgefleet cohort``: name parts of the fleet by their labels."""

from typing import Annotated

import typer

from fleet_server.command_line.connection import connect
from fleet_server.command_line.output import AsJson, CommandError, print_table, say, show

app = typer.Typer(no_args_is_help=True, help="Name parts of the fleet by their labels.")


@app.command("create")
def create_cohort(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="COHORT")],
    label: Annotated[
        list[str],
        typer.Option(
            "--label",
            metavar="KEY=VALUE",
            help="What its devices are labelled with, for example site=lab; several values of "
            "one label are alternatives, several labels must all match.",
        ),
    ],
    priority: Annotated[
        int,
        typer.Option(
            metavar="NUMBER", help="Where several cohorts match a device, the highest wins."
        ),
    ] = 10,
    as_json: AsJson = False,
) -> None:
    """Create a cohort; devices that match it move to it at once."""
    body = {"name": name, "selector": read_selector(label), "priority": priority}
    made = connect(context).post("/v1/cohorts", body)
    show(made, as_json, lambda: say(f"Cohort {name} created; {made['devices']} devices are in it."))


@app.command("list")
def list_cohorts(context: typer.Context, as_json: AsJson = False) -> None:
    """List the cohorts, in the order in which devices are matched."""
    found = connect(context).get("/v1/cohorts")
    show(
        found,
        as_json,
        lambda: print_table(
            ("COHORT", "PRIORITY", "DEVICES", "SELECTOR"),
            (
                (
                    cohort["name"],
                    cohort["priority"],
                    cohort["devices"],
                    _written(cohort["selector"]) or "(everyone else)",
                )
                for cohort in found
            ),
            empty="There are no cohorts.",
        ),
    )


def read_selector(words: list[str]) -> dict[str, str | list[str]]:
    """Return a selector from KEY=VALUE words; a key that comes again adds an alternative.

    Raises:
        CommandError: if a word is not of this form.
    """
    values: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise CommandError(f"{word!r} is not a label.", "Write it as KEY=VALUE: site=lab.")
        values.setdefault(key, []).append(value)
    return {key: found[0] if len(found) == 1 else found for key, found in values.items()}


def _written(selector: dict[str, str | list[str]]) -> str:
    return " ".join(
        f"{key}={wanted if isinstance(wanted, str) else '|'.join(wanted)}"
        for key, wanted in sorted(selector.items())
    )

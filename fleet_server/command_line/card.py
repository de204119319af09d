"""``edgefleet model card``: what a stranger should know of a release, to read or to keep."""

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer
from rich.console import Console
from rich.markdown import Markdown

from fleet_server.command_line.connection import connect
from fleet_server.command_line.output import AsJson, CommandError, say, show


def show_card(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL")],
    version: Annotated[str, typer.Argument(metavar="VERSION")],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write card.md, card.json and plots/*.svg here; made if need be.",
            file_okay=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a release's model card, or write it with its pictures into a folder."""
    path = f"/v1/models/{quote(name, safe='')}/releases/{quote(version, safe='')}/card"
    connection = connect(context)
    card = connection.get(path)
    if output is None:
        show(card, as_json, lambda: _print(card["markdown"]))
        return
    written = {
        "card.md": card["markdown"],
        "card.json": connection.text(path),
        **{
            f"plots/{plot}.svg": connection.text(f"{path}/plots/{plot}.svg")
            for plot in card["plots"]
        },
    }
    try:
        (output / "plots").mkdir(parents=True, exist_ok=True)
        for file, text in written.items():
            (output / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{output} cannot be written: {error.strerror}.") from error
    files = [str(output / file) for file in written]
    show(
        {"files": files}, as_json, lambda: say(f"The card is {files[0]}; its pictures lie beside.")
    )


def _print(markdown: str) -> None:
    console = Console()
    if console.is_terminal:
        console.print(Markdown(markdown))
    else:
        say(markdown.rstrip("\n"))

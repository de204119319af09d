"""How the command line speaks: tables and sentences for people, JSON for programs.

Results go to standard output, everything else to standard error. An error is one sentence and what
to do about it; the exit code is 1, or 2 where the command itself was wrong.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


class CommandError(Exception):
    """A command that cannot be done: what is wrong, and what to do about it.

    Attributes:
        problem: the server's problem+json, if it is the server that refused.
    """

    def __init__(
        self, detail: str, advice: str = "", problem: dict[str, Any] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.advice = advice
        self.problem = problem


def show(result: Any, as_json: bool, for_people: Callable[[], None]) -> None:
    """Print a result: as JSON, or by the function that knows how people like it."""
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        for_people()


def say(text: str) -> None:
    """Print a line for a person; what looks like markup is printed as it is."""
    Console(highlight=False, soft_wrap=True).print(Text(text))


def explain(text: str) -> None:
    """Print a line for a person beside the result: to standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(text))


def tell(text: str) -> None:
    """Print prose: wrapped between words on a terminal, one line for whatever reads a pipe."""
    console = Console(highlight=False)
    console.print(Text(text), soft_wrap=not console.is_terminal)


def sentence(text: str) -> str:
    """Return words as a sentence: with a capital first, and an end."""
    ended = text if text.endswith((".", "!", "?")) else f"{text}."
    return ended[:1].upper() + ended[1:]


def duration(milliseconds: int) -> str:
    """Return a time span in the largest unit that it reaches: 90 min is 1.5 h."""
    for size, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min")):
        if milliseconds >= size:
            return f"{milliseconds / size:g} {unit}"
    return f"{milliseconds / 1000:g} s"


def mib(size_bytes: int) -> str:
    """Return a size in MiB, without the unit."""
    return f"{size_bytes / 1024**2:.1f}"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print rows below their columns' titles, or a sentence where there are none."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    if table.row_count:
        Console(highlight=False).print(table)
    else:
        say(empty)


def ago(then_ms: int | None, now_ms: int) -> str:
    """How long ago something was, in the largest unit that fits."""
    if then_ms is None:
        return "never"
    seconds = max(0, (now_ms - then_ms) // 1_000)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def report(error: CommandError, as_json: bool) -> None:
    """Print an error: to standard error for people, to standard output as JSON for programs."""
    if as_json:
        found = error.problem or {"detail": error.detail, "advice": error.advice}
        sys.stdout.write(json.dumps({"error": found}, indent=2) + "\n")
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text("error: ", style="bold red") + Text(sentence(error.detail), style=""))
    if error.advice:
        console.print(Text(f"       {error.advice[:1].upper()}{error.advice[1:]}"))
    if error.problem and error.problem.get("status", 0) >= 500:
        console.print(Text(f"       correlation id: {error.problem.get('correlation_id')}"))

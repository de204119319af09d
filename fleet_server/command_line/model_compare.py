"""``edgefleet model compare``: two releases of a model side by side.

Decides which facts of a release are comparable: everything that staging measured, whatever steps
there are, the form that was chosen, inputs and outputs, tools, and what the pushers said.
"""

from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import quote

import typer

from fleet_server.command_line.connection import connect
from fleet_server.command_line.output import AsJson, print_table, show

app = typer.Typer(no_args_is_help=True)

Facts = dict[str, Any]


@app.command("compare")
def compare_releases(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MODEL")],
    first: Annotated[str, typer.Argument(metavar="A", help="A version.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    everything: Annotated[bool, typer.Option("--all", help="Also what is alike.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two releases of a model: sizes, parity, gates, latency, schema, tools, metadata."""
    connection = connect(context)
    path = f"/v1/models/{quote(name, safe='')}/releases"
    both = [facts(connection.get(f"{path}/{quote(item, safe='')}")) for item in (first, second)]
    rows = compare(*both)
    shown = [row for row in rows if everything or not row["same"]]
    show(
        {"model": name, "a": first, "b": second, "facts": shown},
        as_json,
        lambda: print_table(
            ("", first, second, "CHANGE"),
            ((row["fact"], _plain(row["a"]), _plain(row["b"]), row["change"]) for row in shown),
            empty="They are alike in all that is known of them.",
        ),
    )


def facts(release: Any) -> Facts:
    """Return what is known of a release by the names of the facts, in the order to show them."""
    return dict(_facts(release))


def compare(first: Facts, second: Facts) -> list[dict[str, Any]]:
    """Return a row for each fact that either has; ``change`` is a number's growth as a share."""
    names = [*first, *(name for name in second if name not in first)]
    return [_row(name, first.get(name), second.get(name)) for name in names]


def _facts(release: Any) -> Iterator[tuple[str, Any]]:
    for name in ("state", "stage", "source_bytes", "pushed_by"):
        yield name, release[name]
    if release["problem"]:
        yield "refused by", release["problem"]["gate"]
    for step in release["steps"]:
        for name, figure in step["figures"].items():
            yield f"{step['name']}: {name}", figure
        for result in step.get("gates", []):
            yield f"{result['gate']}: {result['name']}", result["figure"]
        for candidate in step.get("candidates", []):
            if candidate["chosen"]:
                yield "chosen: latency_us", candidate["latency_us"]
                yield "chosen: float_latency_us", candidate["float_latency_us"]
    manifest = release["manifest"]
    if manifest is not None:
        for side in ("inputs", "outputs"):
            for tensor in manifest[side]:
                shape = " x ".join("any" if axis is None else str(axis) for axis in tensor["shape"])
                yield f"{side}: {tensor['name']}", f"{tensor['dtype']} {shape}"
        for tool, version in manifest["lineage"]["tools"].items():
            yield f"tool: {tool}", version
    for name, said in release["metadata"].items():
        if isinstance(said, dict):
            for key, value in said.items():
                yield f"{name}: {key}", value
        else:
            yield name, said


def _row(name: str, first: Any, second: Any) -> dict[str, Any]:
    numbers = all(
        isinstance(item, int | float) and not isinstance(item, bool) for item in (first, second)
    )
    change = f"{second / first - 1:+.1%}" if numbers and first and second != first else ""
    return {"fact": name, "a": first, "b": second, "same": first == second, "change": change}


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return str(value)

"""``edgefleet model``: push a release, follow its staging, look at what there is."""

import io
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fleet_server.clock import SystemClock
from fleet_server.command_line.connection import Connection, connect
from fleet_server.command_line.output import AsJson, ago, print_table, say, show

app = typer.Typer(no_args_is_help=True, help="Push models, and see what became of them.")

POLL_S = 0.25
UPLOAD_TIMEOUT_S = 600.0


@app.command("push")
def push_model(
    context: typer.Context,
    name: str,
    file: Annotated[Path, typer.Argument(help="ONNX, float.", exists=True, dir_okay=False)],
    version: Annotated[str, typer.Option(help="Of this release, for example 1.0.0.")],
    calibration: Annotated[
        Path,
        typer.Option(help="npz: examples that show the ranges.", exists=True, dir_okay=False),
    ],
    golden: Annotated[
        Path,
        typer.Option(
            help="npz: examples on which int8 must agree with float.", exists=True, dir_okay=False
        ),
    ],
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="npz: examples as in use; default: calibration.", exists=True, dir_okay=False
        ),
    ] = None,
    output: Annotated[
        str, typer.Option(help="How to read the output: logits, probabilities or values.")
    ] = "logits",
    classes: Annotated[
        str, typer.Option(help="Names of the classes in order, separated by commas.")
    ] = "",
    agreement: Annotated[
        float | None, typer.Option(help="Least share of golden rows that must agree (0.99).")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the staging to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Push a float model; the server quantises, checks and signs it, or says why not."""
    fields = {"version": version, "output_kind": output}
    if agreement is not None:
        fields["agreement"] = str(agreement)
    if classes:
        names = [word.strip() for word in classes.split(",")]
        fields["metadata"] = json.dumps({"classes": names})
    paths = {"model": file, "calibration": calibration, "golden": golden}
    if baseline is not None:
        paths["baseline"] = baseline
    connection = connect(context)
    console = Console(stderr=True, quiet=as_json)
    release = _upload(connection, name, fields, paths, console)
    if wait:
        release = _follow(connection, release, console)
    show(release, as_json, lambda: _describe(release))
    if release["state"] == "refused":
        raise typer.Exit(1)


@app.command("list")
def list_models(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Only this model, release by release.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the models, or one model's releases."""
    connection = connect(context)
    if not name:
        models = connection.get("/v1/models")["models"]
        show(
            models,
            as_json,
            lambda: print_table(
                ("MODEL", "RELEASES", "NEWEST STAGED"),
                ((m["model"], m["releases"], m["newest_staged"] or "-") for m in models),
                empty="No models yet. Push the first by: edgefleet model push",
            ),
        )
        return
    releases = connection.get(f"/v1/models/{name}/releases")["releases"]
    now_ms = SystemClock().now_ms()
    show(
        releases,
        as_json,
        lambda: print_table(
            ("VERSION", "STATE", "PUSHED", "BY", "DIGEST", "REFUSED BECAUSE"),
            (
                (
                    item["version"],
                    item["state"],
                    ago(item["received_ms"], now_ms),
                    item["pushed_by"],
                    (item["digest"] or "-")[:12],
                    item["problem"]["detail"] if item["problem"] else "",
                )
                for item in releases
            ),
            empty="",
        ),
    )


@app.command("show")
def show_release(context: typer.Context, name: str, version: str, as_json: AsJson = False) -> None:
    """Show one release: how staging went, what it measured, or why it was refused."""
    release = connect(context).get(f"/v1/models/{name}/releases/{version}")
    show(release, as_json, lambda: _describe(release))


class _Counted(io.FileIO):
    """A file that says how much of it was read."""

    def __init__(self, path: Path, on_read: Callable[[int], object]) -> None:
        super().__init__(path)
        self._on_read = on_read

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self._on_read(len(data))
        return data


def _upload(
    connection: Connection,
    name: str,
    fields: dict[str, str],
    paths: dict[str, Path],
    console: Console,
) -> Any:
    total = sum(path.stat().st_size for path in paths.values())
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with (
        ExitStack() as stack,
        Progress(
            *columns,
            TransferSpeedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as bar,
    ):
        task = bar.add_task(f"uploading {name} {fields['version']}", total=total)
        files = {
            field: (path.name, stack.enter_context(_Counted(path, lambda n: bar.advance(task, n))))
            for field, path in paths.items()
        }
        return connection.call(
            "POST",
            f"/v1/models/{name}/releases",
            data=fields,
            files=files,
            timeout=UPLOAD_TIMEOUT_S,
        )


def _follow(connection: Connection, release: Any, console: Console) -> Any:
    """Ask until staging has ended."""
    path = f"/v1/models/{release['model']}/releases/{release['version']}"
    with console.status("staging") as status:
        while release["state"] == "staging":
            to_do = release["steps_to_do"]
            status.update(f"staging: {to_do[0] if to_do else 'finishing'}")
            time.sleep(POLL_S)
            release = connection.get(path)
    return release


def _describe(release: Any) -> None:
    say(f"{release['model']} {release['version']}  {release['state']}")
    figures = {step["name"]: step["figures"] for step in release["steps"]}
    sizes = figures.get("parity") or figures.get("quantisation")
    if sizes:
        say(
            f"  size       {_size(release['source_bytes'])} float, {_size(sizes['size_bytes'])} "
            f"int8 ({sizes['share_of_float']:.0%})"
        )
    if "parity" in figures:
        found = figures["parity"]
        agreed = (
            ""
            if found["agreement"] is None
            else (
                f"{found['agreement']:.2%} of {found['rows']} golden rows agree "
                f"(at least {found['least_agreement']:.2%}), "
            )
        )
        say(
            f"  parity     {agreed}signal to noise {found['sqnr_db']:.1f} dB "
            f"(at least {found['least_sqnr_db']:.0f} dB)"
        )
    if release["steps"]:
        took = ", ".join(f"{step['name']} {step['took_ms']} ms" for step in release["steps"])
        say(f"  staging    {took}")
    if release["steps_to_do"]:
        say(f"  to do      {', '.join(release['steps_to_do'])}")
        say(f"  follow it  edgefleet model show {release['model']} {release['version']}")
    if release["digest"]:
        say(f"  manifest   {release['digest']}")
    problem = release["problem"]
    if problem:
        say(f"  refused    {problem['gate']}: {problem['detail']}")
        say(f"             {problem['advice']}")


def _size(size_bytes: int) -> str:
    return (
        f"{size_bytes / 1024:.1f} KiB"
        if size_bytes < 1024**2
        else f"{size_bytes / 1024**2:.1f} MiB"
    )

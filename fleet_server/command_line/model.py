"""``edgefleet model``: push a release, follow its staging, look at what there is."""

import io
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fleet_server.clock import SystemClock
from fleet_server.command_line import gate_options
from fleet_server.command_line.connection import Connection, connect
from fleet_server.command_line.origin import show_provenance
from fleet_server.command_line.output import AsJson, CommandError, ago, print_table, say, show

app = typer.Typer(no_args_is_help=True, help="Push models, and see what became of them.")

POLL_S = 0.25
UPLOAD_TIMEOUT_S = 600.0
MODEL_FILE = "model.onnx"
NEEDED = ("calibration", "golden")
WELCOME = ("baseline", "evaluation")
"""What a release needs besides the model, and what may come with it."""

Name = Annotated[str, typer.Argument(metavar="MODEL", help="Its name; devices ask for it by this.")]


@app.command("push")
def push_model(
    context: typer.Context,
    name: Name,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="The float model as ONNX; or a folder with model.onnx, calibration.npz, "
            "golden.npz and, if there are, baseline.npz and evaluation.npz.",
            exists=True,
        ),
    ],
    version: Annotated[
        str, typer.Option(metavar="VERSION", help="Of this release, for example 1.0.0.")
    ],
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="NPZ",
            help="Examples that show the ranges: 16 rows or more.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option(
            metavar="NPZ",
            help="Examples on which int8 must agree with float: 16 rows or more.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="NPZ",
            help="Examples as in use, which say what normal is; default: calibration.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            metavar="KIND", help="How to read the output: logits, probabilities or values."
        ),
    ] = "logits",
    classes: Annotated[
        str,
        typer.Option(metavar="A,B,...", help="Names of the classes, in order."),
    ] = "",
    agreement: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Least share of golden rows that must agree (0.99)."),
    ] = None,
    evaluation: gate_options.Evaluation = None,
    metric: gate_options.MetricName = "",
    metric_margin: gate_options.MetricMargin = None,
    slice_margin: gate_options.SliceMargin = None,
    override: gate_options.Override = None,
    approve_schema: gate_options.ApproveSchema = "",
    signature: Annotated[
        Path | None,
        typer.Option(
            metavar="SIG",
            help="Whose model it is: the bundle that OpenSSF's model_signing wrote (model.sig).",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the staging to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Push a float model, to be quantised, checked and signed.

    Says in one sentence why not, if a check refuses it. The exit code is 0 for a staged release
    (without --wait: for one that arrived), and 1 for a refused one.
    """
    fields = {"version": version, "output_kind": output}
    if agreement is not None:
        fields["agreement"] = str(agreement)
    if classes:
        names = [word.strip() for word in classes.split(",")]
        fields["metadata"] = json.dumps({"classes": names})
    fields |= gate_options.fields(metric, metric_margin, slice_margin, override, approve_schema)
    given = {"calibration": calibration, "golden": golden, "baseline": baseline}
    given["evaluation"] = evaluation
    paths = _find_files(file, {role: path for role, path in given.items() if path is not None})
    if signature is not None:
        paths["signature"] = signature
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
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="Only this model, release by release.")
    ] = "",
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
    releases = connection.get(f"/v1/models/{quote(name, safe='')}/releases")["releases"]
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
def show_release(
    context: typer.Context,
    name: Name,
    version: Annotated[str, typer.Argument(metavar="VERSION")],
    as_json: AsJson = False,
) -> None:
    """Show one release: figures of its staging, or why it was refused."""
    path = f"/v1/models/{quote(name, safe='')}/releases/{quote(version, safe='')}"
    connection = connect(context)
    release = connection.get(path)
    release["deltas"] = connection.get(f"{path}/deltas")["deltas"]
    show(release, as_json, lambda: _describe(release))


app.command("provenance")(show_provenance)


@app.command("sign")
def sign_release(
    context: typer.Context,
    name: Name,
    version: Annotated[str, typer.Argument(help="Which release.")],
    key: Annotated[
        list[str],
        typer.Option(metavar="URI|FILE", help="The family's key: a PEM file, or hsm:, awskms:, …"),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sign a release whose family's key is not on the server: from CI, or a laptop."""
    # Imported here: pushing and looking need none of it.
    from fleet_server.command_line.signing import sign_pending
    from fleet_server.trust import offline

    connection = connect(context)
    path = f"/v1/models/{quote(name, safe='')}"
    release = connection.get(f"{path}/releases/{quote(version, safe='')}")
    if release["state"] != "unsigned":
        raise CommandError(f"{name} {version} is {release['state']}: it waits for no signature.")
    files = [Path(item) for item in key if Path(item).is_file()]
    uris = [item for item in key if not Path(item).is_file()]
    here = [offline.read_private(path) for path in files]
    done = sign_pending(connection, f"{path}/pending", here, uris, yes=yes, only=release["digest"])
    show(done, as_json, lambda: _tell_signed(name, version, committed=done[-1]["committed"]))


def _tell_signed(name: str, version: str, *, committed: bool) -> None:
    if committed:
        say(f"{name} {version} is signed. Next: edgefleet rollout start {name} {version}")
    else:
        say(f"{name} {version} needs more signatures. Next: edgefleet trust status")


def _find_files(file: Path, given: dict[str, Path]) -> dict[str, Path]:
    """Return each role's file: the one that was named, else the one in the release's folder.

    Raises:
        CommandError: if a file is missing that a release needs.
    """
    found = {"model": file}
    if file.is_dir():
        in_folder = {role: file / f"{role}.npz" for role in (*NEEDED, *WELCOME)}
        found = {
            "model": file / MODEL_FILE,
            **{role: path for role, path in in_folder.items() if path.is_file()},
        }
        if not found["model"].is_file():
            raise CommandError(f"There is no {MODEL_FILE} in {file}.", "Name the model's file.")
    found |= given
    missing = [role for role in NEEDED if role not in found]
    if missing:
        raise CommandError(
            f"A release needs {' and '.join(missing)} examples.",
            f"Give them by {' and '.join(f'--{role} FILE.npz' for role in missing)}: one array an "
            "input, named as the input; docs/guides/push-a-model.md says more.",
        )
    return found


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
            f"/v1/models/{quote(name, safe='')}/releases",
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


def _describe_candidates(steps: Any) -> None:
    rows = [row for step in steps for row in step.get("candidates", [])]
    if len(rows) < 2:
        return  # nothing was searched for
    for row in rows:
        parts = [f"  {'chosen' if row['chosen'] else 'tried':<10} {row['recipe']:<11}"]
        if row["size_bytes"] is not None:
            parts.append(f"{_size(row['size_bytes']):>10}")
        if row["latency_us"] is not None:
            parts.append(f"{row['latency_us']:.0f} us (float {row['float_latency_us']:.0f} us),")
        if row["agreement"] is not None:
            parts.append(f"{row['agreement']:.2%} agree,")
        if row["sqnr_db"] is not None:
            parts.append(f"{row['sqnr_db']:.1f} dB: {'passes' if row['passes'] else 'fails'}")
        say(" ".join([*parts, row["note"]]).rstrip())


def _describe(release: Any) -> None:
    say(f"{release['model']} {release['version']}  {release['state']}")
    figures = {step["name"]: step["figures"] for step in release["steps"]}
    sizes = figures.get("parity") or figures.get("quantisation")
    if sizes:
        say(
            f"  size       {_size(release['source_bytes'])} float, {_size(sizes['size_bytes'])} "
            f"{sizes.get('precision', 'int8')} ({sizes['share_of_float']:.0%})"
        )
    _describe_candidates(release["steps"])
    if reason := figures.get("quantisation", {}).get("reason"):
        say(f"  as it is   {reason}")
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
    gate_options.describe_gates(release["steps"])
    if release["steps"]:
        took = ", ".join(f"{step['name']} {step['took_ms']} ms" for step in release["steps"])
        say(f"  staging    {took}")
    if release["steps_to_do"]:
        say(f"  to do      {', '.join(release['steps_to_do'])}")
        say(f"  follow it  edgefleet model show {release['model']} {release['version']}")
    say(f"  signed     {_origin(release['origin'])}")
    if release["digest"]:
        say(f"  manifest   {release['digest']}")
    for delta in release.get("deltas", []):
        share = delta["patch_bytes"] / max(delta["new_bytes"], 1)
        size = f", {_size(delta['patch_bytes'])} ({share:.0%})" if delta["patch_bytes"] else ""
        say(f"  patch      from {delta['old_version']}: {delta['state'].replace('_', ' ')}{size}")
    problem = release["problem"]
    if problem:
        say(f"  refused    {problem['gate']}: {problem['detail']}")
        say(f"             {problem['advice']}")


def _origin(origin: Any) -> str:
    if origin is None:
        return "by nobody"
    return f"by {origin['identity']} ({origin['method']} {origin['fingerprint'][:16]})"


def _size(size_bytes: int) -> str:
    return (
        f"{size_bytes / 1024:.1f} KiB"
        if size_bytes < 1024**2
        else f"{size_bytes / 1024**2:.1f} MiB"
    )

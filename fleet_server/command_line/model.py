"""``edgefleet model``: push a release, follow its staging, look at what there is."""

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console

from fleet_server.command_line import gate_options, push_options, release_metadata
from fleet_server.command_line.card import show_card
from fleet_server.command_line.connection import Connection, connect
from fleet_server.command_line.garbage import collect_garbage
from fleet_server.command_line.origin import show_provenance
from fleet_server.command_line.output import AsJson, CommandError, say, show
from fleet_server.command_line.push_options import (
    Agreement,
    BenchLabels,
    Classes,
    Constants,
    Kind,
    Numpy,
    Shapes,
    SizeBudget,
    States,
)
from fleet_server.command_line.release_metadata import describe_metadata
from fleet_server.command_line.staging_outcome import (
    TIMEOUT_S,
    Outcome,
    Timeout,
    Wait,
    follow,
    outcome,
)
from fleet_server.command_line.uploading import send_release
from fleet_server.command_line.variants import read_variants
from fleet_server.command_line.waiting_uploads import list_uploads

app = typer.Typer(no_args_is_help=True, help="Push models, and see what became of them.")

MODEL_FILES = ("model.onnx", "model.tflite")
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
            help="The float model as ONNX or TFLite; or a folder with model.onnx or model.tflite, "
            "calibration.npz, golden.npz and, if there are, baseline.npz, evaluation.npz and "
            "metadata.json.",
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
            help="Examples that show the ranges, an array an input, named as it: 16 rows or more.",
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
    output: Kind = "logits",
    classes: Classes = "",
    agreement: Agreement = None,
    evaluation: gate_options.Evaluation = None,
    metric: gate_options.MetricName = "",
    metric_margin: gate_options.MetricMargin = None,
    slice_margin: gate_options.SliceMargin = None,
    override: gate_options.Override = None,
    approve_schema: gate_options.ApproveSchema = "",
    shape: Shapes = None,
    constant: Constants = None,
    state: States = None,
    size_budget: SizeBudget = "",
    bench: BenchLabels = None,
    numpy: Numpy = "",
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:KEY=VALUE,...",
            help="A further artifact for some devices, by machine=, label.NAME=, memory_mib=; made "
            "by recipe= or a search, or of file=. May be given several times.",
        ),
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option(
            metavar="SIG",
            help="Whose model it is: the bundle that OpenSSF's model_signing wrote (model.sig).",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    metadata: release_metadata.MetadataFile = None,
    tag: release_metadata.Tags = None,
    licence: release_metadata.Licence = "",
    owner: release_metadata.Owner = "",
    commit: release_metadata.Commit = "",
    dataset_hash: release_metadata.DatasetHash = "",
    environment_lock: release_metadata.EnvironmentLock = "",
    wait: Wait = False,
    timeout: Timeout = TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Push a model, to be quantised, checked and signed.

    Says in one sentence why not, if a check refuses it. Exit codes: 0 staged (without --wait:
    arrived), 1 it could not be sent or was not taken, 2 the command was wrong, 3 refused at
    staging, 4 still being staged when the time was over, 5 it waits for a signature.
    """
    said = release_metadata.gather(
        metadata or release_metadata.beside(file),
        tag,
        classes=push_options.class_names(classes),
        licence=licence,
        owner=owner,
        git_commit=commit,
        dataset_hash=dataset_hash,
        environment_lock=environment_lock,
    )
    fields = push_fields(version, output, agreement, said)
    fields |= push_options.fields(shape, constant, state, size_budget, bench, numpy)
    fields |= gate_options.fields(metric, metric_margin, slice_margin, override, approve_schema)
    given = {"calibration": calibration, "golden": golden, "baseline": baseline}
    given["evaluation"] = evaluation
    paths = find_files(file, {role: path for role, path in given.items() if path is not None})
    if variant:
        fields["variants"], own = read_variants(variant)
        paths |= own
    if signature is not None:
        paths["signature"] = signature
    send(connect(context), name, fields, paths, timeout if wait else None, as_json)


def push_fields(
    version: str, output: str, agreement: float | None, metadata: dict[str, Any]
) -> dict[str, str]:
    """Return the text fields of an upload."""
    fields = {"version": version, "output_kind": output}
    if agreement is not None:
        fields["agreement"] = str(agreement)
    if metadata:
        fields["metadata"] = json.dumps(metadata)
    return fields


def send(
    connection: Connection,
    name: str,
    fields: dict[str, str],
    paths: dict[str, Path],
    wait_s: float | None,
    as_json: bool,
) -> None:
    """Upload a release, wait for its staging unless ``wait_s`` is None, and say what became of it.

    Raises:
        typer.Exit: with the exit code, if it was waited for and is not staged.
        CommandError: if the server cannot be reached or does not take it.
    """
    console = Console(stderr=True, quiet=as_json)
    release = send_release(connection, name, fields, paths, console)
    if wait_s is not None:
        release = follow(connection, release, console, wait_s)
    show(release, as_json, lambda: _describe(release))
    if wait_s is not None and outcome(release) is not Outcome.STAGED:
        raise typer.Exit(outcome(release))


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


app.command("card")(show_card)
app.command("provenance")(show_provenance)
app.command("gc")(collect_garbage)
app.command("uploads")(list_uploads)


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


def find_files(file: Path, given: dict[str, Path]) -> dict[str, Path]:
    """Return each role's file: the one that was named, else the one in the release's folder.

    Raises:
        CommandError: if a file is missing that a release needs.
    """
    found = {"model": file}
    if file.is_dir():
        in_folder = {role: file / f"{role}.npz" for role in (*NEEDED, *WELCOME)}
        models = [file / name for name in MODEL_FILES if (file / name).is_file()]
        if len(models) != 1:
            raise CommandError(
                f"There is not one of {' and '.join(MODEL_FILES)} in {file}.",
                "Name the model's file.",
            )
        found = {
            "model": models[0],
            **{role: path for role, path in in_folder.items() if path.is_file()},
        }
    found |= given
    missing = [role for role in NEEDED if role not in found]
    if missing:
        raise CommandError(
            f"A release needs {' and '.join(missing)} examples.",
            f"Give them by {' and '.join(f'--{role} FILE.npz' for role in missing)}: one array an "
            "input, named as the input; docs/guides/push-a-model.md says more.",
        )
    return found


def _describe_candidates(steps: Any) -> None:
    rows = [row for step in steps for row in step.get("candidates", [])]
    if len(rows) < 2:
        return  # nothing was searched for
    for row in rows:
        parts = [f"  {'chosen' if row['chosen'] else 'tried':<10} {row['recipe']:<14}"]
        if row["size_bytes"] is not None:
            parts.append(f"{_size(row['size_bytes']):>10}")
        if row["latency_us"] is not None:
            parts.append(f"{row['latency_us']:.0f} us (float {row['float_latency_us']:.0f} us),")
        if row["agreement"] is not None:
            parts.append(f"{row['agreement']:.2%} agree,")
        if row["sqnr_db"] is not None:
            parts.append(f"{row['sqnr_db']:.1f} dB: {'passes' if row['passes'] else 'fails'}")
        if row["sequence_sqnr_db"] is not None:
            parts.append(f"({row['sequence_sqnr_db']:.1f} dB in sequence)")
        say(" ".join([*parts, row["note"]]).rstrip())
    for step in steps:
        if where := step["figures"].get("timed_on"):
            why = step["figures"].get("no_bench")
            say(f"  timed on   {where}{f'; {why}' if why else ''}")


def _describe(release: Any) -> None:
    stage = f", {release['stage']}" if release["stage"] != "staging" else ""
    say(f"{release['model']} {release['version']}  {release['state']}{stage}")
    describe_metadata(release["metadata"])
    figures = {step["name"]: step["figures"] for step in release["steps"]}
    sizes = figures.get("parity") or figures.get("quantisation")
    reason = figures.get("quantisation", {}).get("reason")
    if sizes and reason:
        say(f"  size       {_size(sizes['size_bytes'])} {sizes.get('precision', '')}".rstrip())
    elif sizes:
        say(
            f"  size       {_size(release['source_bytes'])} float, {_size(sizes['size_bytes'])} "
            f"{sizes.get('precision', 'int8')} ({sizes['share_of_float']:.0%})"
        )
    _describe_candidates(release["steps"])
    for name, line in figures.get("variants", {}).items():
        say(f"  variant    {name}: {line}")
    if reason:
        say(f"  as it is   {reason}")
    elif "parity" in figures:
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
        if found.get("sequence_sqnr_db") is not None:
            say(
                f"  sequence   {found['sequence_sqnr_db']:.1f} dB over {found['sequence_steps']} "
                "steps with its own states"
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
        say(f"  card       edgefleet model card {release['model']} {release['version']}")
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

"""``edgefleet model import``: take a model out of an MLflow registry and push it.

The files go through this machine: the server needs no way to the registry, and no credentials.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_server.command_line import gate_options, push_options, release_metadata
from fleet_server.command_line.connection import connect
from fleet_server.command_line.model import find_files, push_fields, send
from fleet_server.command_line.output import AsJson, CommandError, explain
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
from fleet_server.command_line.staging_outcome import TIMEOUT_S, Timeout, Wait

app = typer.Typer(no_args_is_help=True)


def _examples(help_: str) -> Any:
    return typer.Option(metavar="NPZ", help=help_, exists=True, dir_okay=False)


@app.command("import")
def import_model(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="mlflow:models:/NAME/VERSION, mlflow:models:/NAME@ALIAS or mlflow:runs:/RUN/PATH.",
        ),
    ],
    name: Annotated[
        str, typer.Option(metavar="MODEL", help="Its name here; default: the registry's.")
    ] = "",
    version: Annotated[
        str, typer.Option(metavar="VERSION", help="Of this release; default: the registry's.")
    ] = "",
    tracking_uri: Annotated[
        str, typer.Option(metavar="URL", help="The MLflow server (MLFLOW_TRACKING_URI).")
    ] = "",
    file: Annotated[
        str, typer.Option(metavar="NAME", help="Which file of the logged model is the model.")
    ] = "",
    calibration: Annotated[
        Path | None, _examples("Examples; default: calibration.npz of the model or its run.")
    ] = None,
    golden: Annotated[
        Path | None, _examples("Examples; default: golden.npz of the model or its run.")
    ] = None,
    baseline: Annotated[
        Path | None, _examples("Examples; default: baseline.npz, if there is one.")
    ] = None,
    evaluation: Annotated[
        Path | None, _examples("Labelled rows; default: evaluation.npz, if there is one.")
    ] = None,
    output: Kind = "logits",
    classes: Classes = "",
    agreement: Agreement = None,
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
    metadata: release_metadata.MetadataFile = None,
    tag: release_metadata.Tags = None,
    licence: release_metadata.Licence = "",
    owner: release_metadata.Owner = "",
    wait: Wait = False,
    timeout: Timeout = TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Push a model of an MLflow registry, with what it knows of the run that made it.

    What you say by --metadata and the options goes over what MLflow says. Exit codes are those of
    edgefleet model push.
    """
    # Imported here: nothing else needs onnx, which takes its time.
    from fleet_server.mlflow.fetching import fetch_examples, fetch_model
    from fleet_server.mlflow.lineage import lineage
    from fleet_server.mlflow.references import read_reference
    from fleet_server.mlflow.registry import Registry

    wanted = read_reference(source)
    url = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not url:
        raise CommandError(
            "Nothing says which MLflow server is meant.",
            "Set --tracking-uri or MLFLOW_TRACKING_URI.",
        )
    asked = push_options.fields(shape, constant, state, size_budget, bench, numpy)
    asked |= gate_options.fields(metric, metric_margin, slice_margin, override, approve_schema)
    given = {"calibration": calibration, "golden": golden, "baseline": baseline}
    given["evaluation"] = evaluation
    with (
        tempfile.TemporaryDirectory(prefix="edgefleet-") as made,
        Registry(url, _credentials()) as registry,
    ):
        found = registry.find(wanted)
        entry = found.version
        name, version = (
            name or (entry.name if entry else ""),
            version or (entry.version if entry else ""),
        )
        if not name or not version:
            raise CommandError(
                "A run has no name and no version for a release.", "Give --name and --version."
            )
        folder = Path(made)
        model = fetch_model(registry, found, file, folder)
        here = fetch_examples(registry, found, folder)
        here |= {role: path for role, path in given.items() if path is not None}
        known = lineage(found)
        for what in known.left_out:
            explain(f"Left out: {what}.")
        said = release_metadata.gather(
            metadata,
            tag,
            known.metadata,
            classes=push_options.class_names(classes),
            licence=licence,
            owner=owner,
        )
        fields = push_fields(version, output, agreement, said) | asked
        wait_s = timeout if wait else None
        send(connect(context), name, fields, find_files(model, here), wait_s, as_json)


def _credentials() -> dict[str, Any]:
    """MLflow's own variables, as its client reads them."""
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"headers": {"Authorization": f"Bearer {token}"}}
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user:
        return {"auth": (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))}
    return {}

"""What ``edgefleet model push`` tells the gates, and how their figures are shown.

Decides the options and the lines; what a gate asks for is the server's.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_server.command_line.output import CommandError, say
from fleet_server.releases import limits

Evaluation = Annotated[
    Path | None,
    typer.Option(
        metavar="NPZ",
        help="Labelled rows for the gates: the inputs, label, and slice:NAME columns.",
        exists=True,
        dir_okay=False,
    ),
]
MetricName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What counts on the evaluation rows: accuracy, auc, f1, rmse or mae.",
    ),
]
MetricMargin = Annotated[
    float | None,
    typer.Option(metavar="GAIN", help="Least gain over production; below zero, what may be lost."),
]
SliceMargin = Annotated[
    float | None, typer.Option(metavar="LOSS", help="What a slice may lose at most (0.02).")
]
Override = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GATE=REASON", help="Let the release pass this gate; needs force-gate. Repeatable."
    ),
]
ApproveSchema = Annotated[
    str,
    typer.Option(
        metavar="REASON", help="Why inputs, outputs or classes may change; needs force-gate."
    ),
]


def fields(
    metric: str,
    metric_margin: float | None,
    slice_margin: float | None,
    override: Sequence[str] | None,
    approve_schema: str,
) -> dict[str, str]:
    """Return the fields of the upload that these options stand for.

    Raises:
        CommandError: if an override gives no reason.
    """
    found = {
        "metric": metric,
        "metric_margin": "" if metric_margin is None else str(metric_margin),
        "slice_margin": "" if slice_margin is None else str(slice_margin),
        "approve_schema": approve_schema,
    }
    reasons = {}
    for item in override or []:
        gate, _, reason = item.partition("=")
        if not reason.strip():
            raise CommandError(f"{item!r} gives no reason.", "Write --override GATE=REASON.")
        reasons[gate.strip()] = reason.strip()
    if reasons:
        found["overrides"] = json.dumps(reasons)
    return {name: value for name, value in found.items() if value}


def describe_gates(steps: Any) -> None:
    """Print what was compared with production, what did not pass, and what applications must know;
    one line where there is nothing of it."""
    results = [row for step in steps for row in step.get("gates", [])]
    if not results:
        return
    failed = [row for row in results if not row["passed"]]
    names = list(dict.fromkeys(row["gate"] for row in results))
    say(f"  gates      {len(names)} with {len(results)} figures, {len(failed)} did not pass")
    compared = ("metric", "slices", "latency", "memory")
    for row in results:
        compares = row["gate"] in compared and row["bound"] is not None
        if not row["passed"] or compares or _to_know(row):
            verdict = "passes" if row["passed"] else "fails"
            say(f"    {row['gate']:<14} {verdict}: {row['note']}")
            if row["overridden"]:
                say(f"    {'':<14} overridden: {row['overridden']}")


def _to_know(row: Any) -> bool:
    """Whether people have to know of it although it passes: missing values go through the model, so
    that applications must not send any, or it has too few rows to go into production."""
    least = {"finite_missing": 1, "baseline_rows": limits.PRODUCTION_BASELINE_ROWS}.get(row["name"])
    return least is not None and row["figure"] is not None and row["figure"] < least

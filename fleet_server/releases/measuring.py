"""Measures what the gates are to judge: runs what ships, and production beside it.

Decides what is measured and on which rows; what the figures have to be is decided by the gates.
Models are run in the laboratory's children only.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fleet_contract.manifest import Manifest, Runtime, TensorSpec, artifact_path
from fleet_server.releases import limits, timing
from fleet_server.releases.evaluation import Labelled
from fleet_server.releases.examples import Rows, count
from fleet_server.releases.gates import metrics
from fleet_server.releases.gates.custom import WALL_S
from fleet_server.releases.gates.exercised import Exercised
from fleet_server.releases.gates.given import Cost, Evaluation, Given, SchemaChange
from fleet_server.releases.gates.table import CUSTOM
from fleet_server.releases.laboratory import custom_gates
from fleet_server.releases.laboratory.laboratory import Laboratory, head, lay_out
from fleet_server.releases.laboratory.tasks import (
    Ask,
    Asked,
    Exercise,
    Raced,
    RawTensor,
    Weigh,
    Weighed,
)
from fleet_server.releases.states import GateResult, Refusal
from fleet_server.releases.store import Store
from fleet_server.releases.timing import Heat, Place, Runner
from fleet_server.releases.uploads import Options

_COPY = "production"


@dataclass(frozen=True, slots=True)
class Production:
    """The production release's artifact, where children can read it."""

    version: str
    path: Path
    runtime: Runtime


@dataclass(frozen=True, slots=True)
class Subject:
    """A release that is to be judged. ``shipped`` lies in the folder above ``folder``.

    Attributes:
        golden: rows, and on them the outputs of what ships and of the float model.
        production: None, and then ``why_not`` says why nothing is compared.
        runtime: what executes what ships.
        place: where both releases are timed, besides on the server.
    """

    laboratory: Laboratory
    folder: Path
    options: Options
    shipped: Path
    float_model: Path
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    calibration: Rows
    golden: Rows
    golden_outputs: Rows
    float_outputs: Rows
    baseline: Rows
    baseline_outputs: Rows
    reference: Rows | None
    labelled: Labelled | None
    production: Production | None
    why_not: str
    schema: SchemaChange
    required_metadata: Sequence[str]
    metadata: dict[str, object]
    runtime: Runtime
    place: Place
    on_try: Callable[[str], None]


def find_production(
    manifest: Manifest | None,
    store: Store,
    folder: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> tuple[Production | None, str]:
    """Return the production release's artifact, copied into a folder, or why there is none."""
    if manifest is None:
        return None, "there is no production release yet"
    named = f"production ({manifest.version})"
    if manifest.inputs != list(inputs) or manifest.outputs != list(outputs):
        return None, f"{named} has other inputs or outputs"
    digest = manifest.variants[-1].artifact.digest
    stored = store.find(artifact_path(manifest.model, digest))
    if stored is None:
        return None, f"{named} is not in the store any more"
    # Children see the upload's folder, and not the store.
    shutil.copyfile(stored.path, folder / _COPY)
    return Production(manifest.version, folder / _COPY, manifest.variants[-1].runtime), ""


def measure(subject: Subject) -> Given:
    """Measure everything, and return it.

    Raises:
        Closed: if the server stops meanwhile.
        Refusal: what children of the laboratory end with, and what an installed gate does.
    """
    options, rows = subject.options, lay_out(subject.baseline, subject.shipped.parent, "judged")
    few = head(rows, _few(subject.baseline))
    metric = options.metric or metrics.default(options.output_kind)
    evaluated = _evaluate(subject)
    return Given(
        kind=options.output_kind,
        outputs=subject.outputs,
        metric=metric,
        metric_margin=options.metric_margin,
        slice_margin=options.slice_margin,
        calibration=subject.calibration,
        baseline=subject.baseline,
        states=frozenset(options.interface.states),
        reference=subject.reference,
        float_outputs=subject.float_outputs,
        evaluation=evaluated,
        cost=_cost(subject, few),
        exercise=_exercise(subject, few),
        schema=subject.schema,
        metadata=subject.metadata,
        required_metadata=subject.required_metadata,
        custom=_ask(subject, evaluated, rows),
    )


def _few(rows: Rows) -> int:
    """How many rows are tried many times over."""
    row_bytes = sum(array[:1].nbytes for array in rows.values())
    fit = max(2, limits.EXERCISE_BYTES // max(row_bytes, 1))
    return min(limits.EXERCISE_ROWS, fit, count(rows))


def _evaluate(subject: Subject) -> Evaluation | None:
    found = subject.labelled
    if found is None:
        return None
    rows = lay_out(found.inputs, subject.shipped.parent, "evaluation")

    def run(path: Path, what: str) -> Rows:
        lab = subject.laboratory
        return lab.run(path, rows, subject.outputs, what, folder=subject.folder)

    production = subject.production
    return Evaluation(
        labels=found.labels,
        slices=found.slices,
        outputs=run(subject.shipped, "quantised model"),
        production=None if production is None else run(production.path, "production release"),
        why_not=subject.why_not,
    )


def _cost(subject: Subject, rows: list[RawTensor]) -> Cost | None:
    production = subject.production
    if production is None:
        return None
    lab, folder = subject.laboratory, subject.folder
    raced, where = _race(subject, production, rows)
    weights = [
        lab.do(Weigh(str(path), rows), Weighed, gate="memory", folder=folder).memory_bytes
        for path in (subject.shipped, production.path)
    ]
    return Cost(raced.model_us, raced.rival_us, weights[0], weights[1], where)


def _race(subject: Subject, production: Production, rows: list[RawTensor]) -> tuple[Raced, str]:
    """Return the latencies of what ships and of production, and on what they were measured."""
    runners = [
        Runner(name, path, path.stat().st_size, runtime)
        for name, path, runtime in (
            ("production", production.path, production.runtime),
            ("what ships", subject.shipped, subject.runtime),
        )
    ]
    heat = Heat(runners[0], runners[1:], rows, subject.inputs, subject.outputs)
    lab, folder = subject.laboratory, subject.folder
    times = timing.time(
        heat, subject.place, lab, folder=folder, gate="latency", on_try=subject.on_try
    )
    return cast(Raced, times.figures[0]), times.where


def _exercise(subject: Subject, rows: list[RawTensor]) -> Exercised:
    kind = subject.options.output_kind
    shipped, trained = str(subject.shipped), str(subject.float_model)
    task = Exercise(shipped, trained, rows, list(subject.outputs), kind)
    return subject.laboratory.do(task, Exercised, gate="robustness", folder=subject.folder)


def _ask(
    subject: Subject, evaluated: Evaluation | None, baseline: list[RawTensor]
) -> list[GateResult]:
    names = custom_gates.installed()
    if not names:
        return []
    groups: dict[str, Rows] = {
        "golden": subject.golden,
        "golden_outputs": subject.golden_outputs,
        "float_outputs": subject.float_outputs,
        "baseline_outputs": subject.baseline_outputs,
    }
    if subject.labelled is not None and evaluated is not None:
        groups["evaluation"] = subject.labelled.inputs
        groups["labels"] = {"label": subject.labelled.labels}
        groups["slices"] = subject.labelled.slices
        groups["evaluation_outputs"] = dict(evaluated.outputs)
        groups["production_outputs"] = dict(evaluated.production or {})
    folder = subject.shipped.parent
    laid = {name: lay_out(rows, folder, name) for name, rows in groups.items()}
    laid["baseline"] = baseline
    options = subject.options
    return [
        result
        for name in names
        for result in _verdict(
            subject.laboratory,
            Ask(
                gate=name,
                release=options.model,
                version=options.version,
                kind=options.output_kind,
                artifact=str(subject.shipped),
                float_model=str(subject.float_model),
                rows=laid,
            ),
            folder=subject.folder,
        )
    ]


def _verdict(laboratory: Laboratory, task: Ask, *, folder: Path) -> list[GateResult]:
    """Have one installed gate judge; one that gives no verdict refuses the release by its name."""
    gate = CUSTOM + task.gate
    try:
        answer = laboratory.do(task, Asked, gate=gate, folder=folder, wall_s=WALL_S)
    except Refusal as refusal:
        problem = refusal.problem
        raise Refusal(
            gate,
            "custom_gate_broke",
            f"The gate {task.gate} of this installation gave no verdict: {problem.detail}"[:1000],
            "Mend the gate, or uninstall it; a release does not pass a gate that cannot judge.",
            figure=problem.figure,
            bound=problem.bound,
        ) from refusal
    return [
        GateResult(gate, said.name, said.figure, said.bound, said.passed, said.note)
        for said in answer.findings
    ]

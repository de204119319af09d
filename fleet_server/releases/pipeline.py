"""Staging: from the uploaded files to a release in the store, step by step.

One table says which steps there are and in which order; each may refuse, and then nothing of the
release is in the store. What is recorded about it, and when, is decided in
:mod:`fleet_server.releases.staging`.
"""

import functools
import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from fleet_contract.features import FeatureSchema
from fleet_contract.manifest import Baseline, FileRef, Manifest
from fleet_server.provenance.statement import DEPENDENCIES, Attester
from fleet_server.releases import (
    evaluation,
    examples,
    feature_schema,
    limits,
    measuring,
    parity,
    sealing,
    search,
    variants,
)
from fleet_server.releases.card import making
from fleet_server.releases.card.content import Proofs
from fleet_server.releases.evaluation import Labelled
from fleet_server.releases.examples import Rows
from fleet_server.releases.gates import feature_schema as schema_gate
from fleet_server.releases.gates import table
from fleet_server.releases.gates.given import SchemaChange
from fleet_server.releases.laboratory.laboratory import Laboratory, lay_out
from fleet_server.releases.laboratory.tasks import Built, Examine, Examined, Weigh, Weighed
from fleet_server.releases.sealing import Sealed
from fleet_server.releases.search import Found, Trial
from fleet_server.releases.states import Figure, GateResult, Refusal, Step
from fleet_server.releases.store import Store
from fleet_server.releases.uploads import EVALUATION, Upload, file_of
from fleet_server.releases.variants import Made


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be staged, and with what. ``previous`` is the model's newest staged release,
    ``previous_card`` the digest of its card, ``signer`` whoever signed the upload; ``invocation``
    names the run in the statement of its origin; ``on_try`` is told what the search tries."""

    upload: Upload
    counter: int
    created_ms: int
    previous: Manifest | None
    incoming: Path
    store: Store
    laboratory: Laboratory
    vouch: Callable[[str, FileRef, list[FileRef]], bool]
    monotonic_ms: Callable[[], int]
    attester: Attester
    invocation: str
    previous_card: str | None = None
    signer: str = ""
    on_try: Callable[[str], None] = lambda _: None
    production: Manifest | None = None
    """What the gates compare with; None: there is none yet."""
    required_metadata: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Staged:
    """A release that passed every step and lies in the store."""

    sealed: Sealed
    baseline: Baseline


@dataclass(slots=True)
class _Bench:
    """What the steps hand on to each other."""

    job: Job
    examined: Examined = field(init=False)
    calibration: Rows = field(init=False)
    golden: Rows = field(init=False)
    memory_bytes: int = field(init=False)
    baseline_inputs: Rows = field(init=False)
    baseline_outputs: Rows = field(init=False)
    reference: Rows | None = None
    labelled: Labelled | None = None
    float_outputs: Rows = field(init=False)
    schema: SchemaChange = field(init=False)
    gates: list[GateResult] = field(default_factory=list)
    trial: Trial = field(init=False)
    found: Found = field(init=False)
    variants: list[Made] = field(default_factory=list)
    features: FeatureSchema = field(init=False)
    baseline: Baseline = field(init=False)
    sealed: Sealed = field(init=False)
    steps: list[Step] = field(default_factory=list)


def stage(job: Job, on_step: Callable[[Step], None]) -> Staged:
    """Run all steps.

    Args:
        job: what to stage.
        on_step: called after each step; may raise to stop in between.

    Raises:
        Refusal: of the first step that refused.
    """
    bench = _Bench(job)
    for name, step in STEPS.items():
        started_ms = job.monotonic_ms()
        figures = step(bench)
        candidates = bench.found.candidates if name == "quantisation" else []
        gates = bench.gates if name == "gates" else []
        bench.steps.append(Step(name, job.monotonic_ms() - started_ms, figures, candidates, gates))
        on_step(bench.steps[-1])
        # After the step was noted: who reads of the refusal sees all figures.
        table.enforce(gates)
    return Staged(bench.sealed, bench.baseline)


def _examine(bench: _Bench) -> dict[str, Figure]:
    lab, model = bench.job.laboratory, _file(bench, "model")
    shutil.rmtree(_folder(bench), ignore_errors=True)  # of an attempt that a crash ended
    _folder(bench).mkdir(mode=0o700)
    rewritten = _folder(bench) / "rewritten.onnx"
    task = Examine(str(model), str(rewritten), bench.job.upload.options.interface)
    bench.examined = lab.do(task, Examined, gate="examination", folder=_folder(bench))
    if bench.examined.changed_bytes:
        _keep(rewritten, _float_model(bench), bench.examined.changed_bytes)
    return {
        "runtime": bench.examined.runtime.value,
        "opset": bench.examined.opset,
        "ir_version": bench.examined.ir_version,
        "operators": ", ".join(bench.examined.operators)[:300],
        "size_bytes": model.stat().st_size,
        "peak_memory_bytes": lab.peak_bytes,
    }


def _read_data(bench: _Bench) -> dict[str, Figure]:
    inputs = bench.examined.inputs
    bench.calibration = examples.read_rows(
        _file(bench, "calibration"),
        "calibration",
        inputs,
        least=limits.LEAST_CALIBRATION_ROWS,
        most=limits.CALIBRATION_ROWS,
    )
    bench.golden = examples.read_rows(
        _file(bench, "golden"),
        "golden",
        inputs,
        least=limits.LEAST_GOLDEN_ROWS,
        most=limits.PARITY_ROWS,
        aside=(evaluation.OUTPUT,),
    )
    bench.reference = evaluation.read_reference(
        _file(bench, "golden"), bench.examined.outputs, examples.count(bench.golden)
    )
    if bench.job.upload.options.evaluated:
        bench.labelled = evaluation.read(
            _file(bench, EVALUATION),
            inputs,
            bench.examined.outputs[0],
            bench.job.upload.options.output_kind,
        )
    bench.baseline_inputs = examples.read_rows(
        _file(bench, "baseline"),
        "baseline",
        inputs,
        least=limits.LEAST_BASELINE_ROWS,
        most=limits.BASELINE_ROWS,
    )
    return {
        "calibration_rows": examples.count(bench.calibration),
        "golden_rows": examples.count(bench.golden),
        "baseline_rows": examples.count(bench.baseline_inputs),
        "evaluation_rows": 0 if bench.labelled is None else len(bench.labelled.labels),
    }


def _quantise(bench: _Bench) -> dict[str, Figure]:
    job, examined, model = bench.job, bench.examined, _float_model(bench)
    options, lab = job.upload.options, job.laboratory
    golden = lay_out(bench.golden, model.parent, "golden")
    states = options.interface.states
    float_model = functools.partial(
        lab.run, model, golden, examined.outputs, "float model", folder=_folder(bench)
    )
    bench.float_outputs = float_model()
    bench.trial = Trial(
        laboratory=lab,
        model=model,
        built=Built(
            model.stat().st_size,
            examined.opset,
            examined.ir_version,
            examined.operators,
            examined.runtime,
        ),
        quantised=examined.quantised,
        folder=_folder(bench),
        calibration=lay_out(bench.calibration, model.parent, "calibration"),
        golden=golden,
        reference=bench.float_outputs,
        followed=float_model(states=states) if states else None,
        states=states,
        size_budget_bytes=options.size_budget_bytes,
        on_try=job.on_try,
        outputs=examined.outputs,
        kind=options.output_kind,
        least_agreement=options.agreement,
        monotonic_ms=job.monotonic_ms,
    )
    bench.found = search.keep(search.search(bench.trial), _shipped(bench))
    found: dict[str, Figure] = {"chosen": bench.found.recipe.value, **_sizes(bench)}
    return found | {"reason": bench.found.reason} if bench.found.reason else found


def _compare(bench: _Bench) -> dict[str, Figure]:
    options, found = bench.job.upload.options, bench.found.parity
    parity.check(found, options.agreement)
    return {
        "rows": found.rows,
        "agreement": found.agreement,
        "least_agreement": options.agreement,
        "sqnr_db": round(found.sqnr_db, 2),
        "least_sqnr_db": parity.LEAST_SQNR_DB,
        "largest_difference": round(found.largest_difference, 6),
        **_drift(bench),
        **_sizes(bench),
    }


def _drift(bench: _Bench) -> dict[str, Figure]:
    found = bench.found.sequence
    if found is None:
        return {}
    return {
        "sequence_steps": found.rows,
        "sequence_agreement": found.agreement,
        "sequence_sqnr_db": round(found.sqnr_db, 2),
    }


def _vary(bench: _Bench) -> dict[str, Figure]:
    wanted = bench.job.upload.options.variants
    bench.variants = variants.make(
        wanted,
        bench.trial,
        bench.examined,
        file_of=lambda name: _file(bench, name),
        folder=_shipped(bench).parent,
    )
    return variants.figures(bench.variants)


def _sizes(bench: _Bench) -> dict[str, Figure]:
    before, after = bench.job.upload.source_bytes, bench.found.artifact.stat().st_size
    return {
        "size_bytes": after,
        "share_of_float": round(after / before, 3),
        "precision": sealing.precision(bench.found.recipe),
    }


def _measure(bench: _Bench) -> dict[str, Figure]:
    job, examined = bench.job, bench.examined
    classes = list(job.upload.options.metadata.classes)
    changed = (
        feature_schema.differences(job.previous, examined.inputs, examined.outputs, classes)
        if job.previous is not None
        else []
    )
    bench.schema = SchemaChange(
        changed,
        job.upload.options.approve_schema,
        examples.count(bench.baseline_inputs),
        examples.count(bench.golden),
    )
    # Before the features are made that hang on it.
    table.enforce(schema_gate.judge_change(bench.schema))
    shipped = _shipped(bench)
    bench.baseline_outputs = job.laboratory.run(
        shipped,
        lay_out(bench.baseline_inputs, shipped.parent, "baseline"),
        examined.outputs,
        "quantised model",
        folder=_folder(bench),
    )
    bench.memory_bytes = _weigh(bench, shipped)
    inherited = None if changed else job.previous
    if inherited is not None:
        bench.features = inherited.features
    else:
        bench.features = feature_schema.build(
            examined.inputs,
            examined.outputs,
            kind=job.upload.options.output_kind,
            classes=classes,
            baseline_inputs=bench.baseline_inputs,
            baseline_outputs=bench.baseline_outputs,
        )
    bench.baseline = sealing.sketch(bench.features, bench.baseline_inputs, bench.baseline_outputs)
    return {
        "input_features": len(bench.features.inputs.names()),
        "output_features": len(bench.features.outputs.names()),
        "schema": bench.features.digest(),
        "memory_bytes": bench.memory_bytes,
        "inherited_from": None if inherited is None else inherited.version,
    }


def _judge(bench: _Bench) -> dict[str, Figure]:
    job, examined, options = bench.job, bench.examined, bench.job.upload.options
    shipped = _shipped(bench)
    production, why_not = measuring.find_production(
        job.production, job.store, shipped.parent, examined.inputs, examined.outputs
    )
    given = measuring.measure(
        measuring.Subject(
            laboratory=job.laboratory,
            folder=_folder(bench),
            options=options,
            shipped=shipped,
            float_model=_float_model(bench),
            inputs=examined.inputs,
            outputs=examined.outputs,
            calibration=bench.calibration,
            golden=bench.golden,
            golden_outputs=bench.found.golden_outputs,
            float_outputs=bench.float_outputs,
            baseline=bench.baseline_inputs,
            baseline_outputs=bench.baseline_outputs,
            reference=bench.reference,
            labelled=bench.labelled,
            production=production,
            why_not=why_not,
            schema=bench.schema,
            metadata={
                **msgspec.to_builtins(options.metadata),
                "evaluation_rows": None if bench.labelled is None else len(bench.labelled.labels),
            },
            required_metadata=job.required_metadata,
        )
    )
    bench.gates = table.judge(given, options.overrides)
    return {
        "judged": len(bench.gates),
        "failed": sum(not result.passed for result in bench.gates),
        "overridden": sum(bool(result.overridden) for result in bench.gates),
        "production": None if production is None else production.version,
        "not_compared": why_not or None,
        "evaluation": _digest(bench, EVALUATION) if options.evaluated else None,
    }


def _seal(bench: _Bench) -> dict[str, Figure]:
    job = bench.job
    golden, golden_outputs = sealing.golden_rows(bench.golden, bench.found.golden_outputs)
    own = [item.file for item in job.upload.options.variants if item.file]
    inputs = {name: _digest(bench, name) for name in (*DEPENDENCIES, *own)}
    bench.sealed = sealing.seal(
        sealing.Content(
            artifact=bench.found.artifact,
            recipe=bench.found.recipe,
            built=bench.found.built,
            memory_bytes=bench.memory_bytes,
            examined=bench.examined,
            features=bench.features,
            baseline=bench.baseline,
            golden=golden,
            golden_outputs=golden_outputs,
            inputs=inputs,
            variants=bench.variants,
        ),
        job.upload.options,
        counter=job.counter,
        created_ms=job.created_ms,
        previous_version=None if job.previous is None else job.previous.version,
        invocation=job.invocation,
        store=job.store,
        attester=job.attester,
        describe=lambda *sealed: _describe(bench, inputs, *sealed),
        vouch=job.vouch,
    )
    artifact = bench.sealed.manifest.variants[-1].artifact
    return {
        "manifest": bench.sealed.digest,
        "artifact": artifact.digest,
        "provenance": bench.sealed.statement,
        "card": bench.sealed.card,
    }


def _weigh(bench: _Bench, shipped: Path) -> int:
    """Return what memory a device must have: of the golden rows that it will be sent, at once."""
    rows, _ = sealing.golden_rows(bench.golden, bench.found.golden_outputs)
    task = Weigh(str(shipped), lay_out(rows, shipped.parent, "weighed"))
    lab, folder = bench.job.laboratory, _folder(bench)
    found = lab.do(task, Weighed, gate="features", folder=folder)
    held = found.memory_bytes * limits.MEMORY_MARGIN
    return math.ceil(held / limits.MEMORY_STEP_BYTES) * limits.MEMORY_STEP_BYTES


def _describe(
    bench: _Bench, inputs: dict[str, str], manifest: Manifest, digest: str, stated: str
) -> bytes:
    job = bench.job
    return making.make(
        making.Known(
            manifest=manifest,
            upload=job.upload,
            steps=bench.steps,
            recipe=bench.found.recipe,
            reason=bench.found.reason,
            parity=bench.found.parity,
            candidates=bench.found.candidates,
            reference=bench.float_outputs,
            shipped=bench.found.golden_outputs,
            baseline=bench.baseline,
            previous=job.previous,
            previous_card=job.previous_card,
            proofs=Proofs(
                digest,
                manifest.variants[-1].artifact.digest,
                inputs["model"],
                stated,
                inputs,
                job.signer,
            ),
        ),
        job.store,
    )


def _digest(bench: _Bench, name: str) -> str:
    with _file(bench, name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file(bench: _Bench, name: str) -> Path:
    # Children work elsewhere: what they are told must be absolute.
    return file_of(bench.job.incoming, bench.job.upload, name).resolve()


def _shipped(bench: _Bench) -> Path:
    """What ships, where no child can write."""
    return _file(bench, "model").with_name("shipped.onnx")


def _float_model(bench: _Bench) -> Path:
    """The model as it goes on: the upload, or what the examination made of it."""
    model = _file(bench, "model")
    return model.with_name("rewritten.onnx") if bench.examined.changed_bytes else model


def _keep(made: Path, kept: Path, size_bytes: int) -> None:
    """Take a file out of the folder that children write to: nobody changes it any more."""
    if made.is_symlink() or made.stat().st_size != size_bytes:
        raise Refusal(
            "examination",
            "child_crashed",
            "The rewritten model is not the file that was made.",
            "Push the version again; look into the server's log if it comes back.",
        )
    kept.unlink(missing_ok=True)  # of an attempt that a crash ended
    made.rename(kept)


def _folder(bench: _Bench) -> Path:
    """The only folder that children may write to."""
    return _file(bench, "model").with_name(limits.TEMPORARY_FILES)


STEPS: dict[str, Callable[[_Bench], dict[str, Figure]]] = {
    "examination": _examine,
    "data": _read_data,
    "quantisation": _quantise,
    "parity": _compare,
    "variants": _vary,
    "features": _measure,
    "gates": _judge,
    "sealing": _seal,
}

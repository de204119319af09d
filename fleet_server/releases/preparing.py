"""The first steps of staging: from the uploaded files to artifacts that pass parity."""

import functools
import shutil

from fleet_server.releases import (
    evaluation,
    examples,
    feature_schema,
    limits,
    parity,
    sealing,
    search,
    variants,
)
from fleet_server.releases.bench import Bench
from fleet_server.releases.candidates import Trial
from fleet_server.releases.gates import feature_schema as schema_gate
from fleet_server.releases.gates import metrics, table
from fleet_server.releases.gates.given import SchemaChange
from fleet_server.releases.laboratory.laboratory import lay_out, take_out
from fleet_server.releases.laboratory.tasks import Built, Examine, Examined
from fleet_server.releases.states import Figure, Refusal
from fleet_server.releases.timing import Place, Target
from fleet_server.releases.uploads import EVALUATION


def examine(bench: Bench) -> dict[str, Figure]:
    lab, model = bench.job.laboratory, bench.file("model")
    shutil.rmtree(bench.folder, ignore_errors=True)  # of an attempt that a crash ended
    bench.folder.mkdir(mode=0o700)
    rewritten = bench.folder / "rewritten.onnx"
    task = Examine(str(model), str(rewritten), bench.job.upload.options.interface)
    bench.examined = lab.do(task, Examined, gate="examination", folder=bench.folder)
    if bench.examined.changed_bytes:
        take_out(rewritten, bench.float_model, bench.examined.changed_bytes)
    return {
        "runtime": bench.examined.runtime.value,
        "opset": bench.examined.opset,
        "ir_version": bench.examined.ir_version,
        "operators": ", ".join(bench.examined.operators)[:300],
        "size_bytes": model.stat().st_size,
        "peak_memory_bytes": lab.peak_bytes,
    }


def read_data(bench: Bench) -> dict[str, Figure]:
    """Read the examples, and refuse what would be refused after all that the search takes."""
    inputs, outputs = bench.examined.inputs, bench.examined.outputs
    options = bench.job.upload.options
    feature_schema.check_scores(outputs[0], options.output_kind, options.metadata.classes)
    _check_row(examples.row_bytes([*inputs, *outputs]))
    bench.calibration = examples.read_rows(
        bench.file("calibration"),
        "calibration",
        inputs,
        least=limits.LEAST_CALIBRATION_ROWS,
        most=limits.CALIBRATION_ROWS,
    )
    bench.golden = examples.read_rows(
        bench.file("golden"),
        "golden",
        inputs,
        least=limits.LEAST_GOLDEN_ROWS,
        most=limits.PARITY_ROWS,
        aside=(evaluation.OUTPUT,),
    )
    examples.check_varied(bench.golden, "golden", least=limits.LEAST_DIFFERENT_ROWS)
    bench.reference = evaluation.read_reference(
        bench.file("golden"), outputs, examples.count(bench.golden)
    )
    if options.evaluated:
        chosen = options.metric or metrics.default(options.output_kind)
        metrics.check_fit(chosen, options.output_kind)
        bench.labelled = evaluation.read(
            bench.file(EVALUATION), inputs, outputs[0], options.output_kind
        )
    bench.baseline_inputs = examples.read_rows(
        bench.file("baseline"),
        "baseline",
        inputs,
        least=limits.LEAST_BASELINE_ROWS,
        most=limits.BASELINE_ROWS,
    )
    bench.schema = _change(bench)
    table.enforce(schema_gate.judge_change(bench.schema))
    return {
        "calibration_rows": examples.count(bench.calibration),
        "golden_rows": examples.count(bench.golden),
        "baseline_rows": examples.count(bench.baseline_inputs),
        "evaluation_rows": 0 if bench.labelled is None else len(bench.labelled.labels),
    }


def _change(bench: Bench) -> SchemaChange:
    """Return what is not as in the release before."""
    options, examined, previous = bench.job.upload.options, bench.examined, bench.job.previous
    changed = []
    if previous is not None:
        changed = feature_schema.differences(
            previous,
            examined.inputs,
            examined.outputs,
            options.metadata.classes,
            options.output_kind,
        )
    rows = examples.count(bench.baseline_inputs), examples.count(bench.golden)
    return SchemaChange(changed, options.approve_schema, *rows)


def _check_row(size_bytes: int) -> None:
    if size_bytes > limits.GOLDEN_ROW_BYTES:
        raise Refusal(
            "data",
            "row_too_large",
            f"One row of all inputs and outputs has {size_bytes} bytes.",
            "Devices test themselves with such rows; export the model with smaller tensors.",
            figure=size_bytes,
            bound=limits.GOLDEN_ROW_BYTES,
        )


def quantise(bench: Bench) -> dict[str, Figure]:
    job, examined, model = bench.job, bench.examined, bench.float_model
    options, lab = job.upload.options, job.laboratory
    golden = lay_out(bench.golden, model.parent, "golden")
    states = options.interface.states
    float_model = functools.partial(
        lab.run, model, golden, examined.outputs, "float model", folder=bench.folder
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
        folder=bench.folder,
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
        inputs=examined.inputs,
        place=Place(job.benches, Target(named=options.bench), f"{options.model} {options.version}"),
    )
    bench.found = search.keep(search.search(bench.trial), bench.shipped)
    found: dict[str, Figure] = {"chosen": bench.found.recipe.value, **_sizes(bench)}
    if bench.found.times is not None:
        found["timed_on"] = bench.found.times.where
        if bench.found.times.why:
            found["no_bench"] = bench.found.times.why
    return found | {"reason": bench.found.reason} if bench.found.reason else found


def compare(bench: Bench) -> dict[str, Figure]:
    options, found = bench.job.upload.options, bench.found.parity
    parity.check(found, options.agreement)
    return {
        "rows": found.rows,
        "agreement": found.agreement,
        "least_agreement": options.agreement,
        "sqnr_db": round(found.sqnr_db, 2),
        "least_sqnr_db": parity.LEAST_SQNR_DB,
        "followed": None if found.followed is None else round(found.followed, 4),
        "least_followed": parity.LEAST_FOLLOWED,
        "largest_difference": round(found.largest_difference, 6),
        **_drift(bench),
        **_sizes(bench),
    }


def vary(bench: Bench) -> dict[str, Figure]:
    wanted = bench.job.upload.options.variants
    bench.variants = variants.make(
        wanted,
        bench.trial,
        bench.examined,
        interface=bench.job.upload.options.interface,
        file_of=bench.file,
        folder=bench.shipped.parent,
    )
    return variants.figures(bench.variants)


def _drift(bench: Bench) -> dict[str, Figure]:
    found = bench.found.sequence
    if found is None:
        return {}
    return {
        "sequence_steps": found.rows,
        "sequence_agreement": found.agreement,
        "sequence_sqnr_db": round(found.sqnr_db, 2),
    }


def _sizes(bench: Bench) -> dict[str, Figure]:
    before, after = bench.job.upload.source_bytes, bench.found.artifact.stat().st_size
    return {
        "size_bytes": after,
        "share_of_float": round(after / before, 3),
        "precision": sealing.precision(bench.found.recipe),
    }

"""The last steps of staging: from artifacts to a release that is described, judged and sealed."""

import math
from dataclasses import replace
from pathlib import Path

import msgspec

from fleet_contract.manifest import Manifest
from fleet_server.provenance.statement import DEPENDENCIES
from fleet_server.releases import (
    feature_schema,
    limits,
    measuring,
    sealing,
)
from fleet_server.releases.bench import Bench
from fleet_server.releases.card import making
from fleet_server.releases.card.content import Proofs
from fleet_server.releases.gates import table
from fleet_server.releases.laboratory.laboratory import lay_out
from fleet_server.releases.laboratory.tasks import Weigh, Weighed
from fleet_server.releases.states import Figure
from fleet_server.releases.timing import Place
from fleet_server.releases.uploads import EVALUATION


def measure(bench: Bench) -> dict[str, Figure]:
    job, examined = bench.job, bench.examined
    shipped = bench.shipped
    bench.baseline_outputs = job.laboratory.run(
        shipped,
        lay_out(bench.baseline_inputs, shipped.parent, "baseline"),
        examined.outputs,
        "quantised model",
        folder=bench.folder,
    )
    bench.memory_bytes = _weigh(bench, shipped)
    inherited = None if bench.schema.differences else job.previous
    if inherited is not None:
        bench.features = inherited.features
    else:
        bench.features = feature_schema.build(
            examined.inputs,
            examined.outputs,
            kind=job.upload.options.output_kind,
            classes=list(job.upload.options.metadata.classes),
            baseline_inputs=bench.baseline_inputs,
            baseline_outputs=bench.baseline_outputs,
        )
    bench.baseline = sealing.sketch(bench.features, bench.baseline_inputs, bench.baseline_outputs)
    sealing.check_size(bench.features, bench.baseline)
    return {
        "input_features": len(bench.features.inputs.names()),
        "output_features": len(bench.features.outputs.names()),
        "schema": bench.features.digest(),
        "memory_bytes": bench.memory_bytes,
        "inherited_from": None if inherited is None else inherited.version,
    }


def judge(bench: Bench) -> dict[str, Figure]:
    job, examined, options = bench.job, bench.examined, bench.job.upload.options
    shipped = bench.shipped
    production, why_not = measuring.find_production(
        job.production, job.store, shipped.parent, examined.inputs, examined.outputs
    )
    given = measuring.measure(
        measuring.Subject(
            laboratory=job.laboratory,
            folder=bench.folder,
            options=options,
            shipped=shipped,
            float_model=bench.float_model,
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
            runtime=bench.found.built.runtime,
            place=_same_place(bench),
            on_try=job.on_try,
        )
    )
    bench.gates = table.judge(given, options.overrides)
    return {
        "judged": len(bench.gates),
        "failed": sum(not result.passed for result in bench.gates),
        "overridden": sum(bool(result.overridden) for result in bench.gates),
        "production": None if production is None else production.version,
        "not_compared": why_not or None,
        "evaluation": bench.digest(EVALUATION) if options.evaluated else None,
    }


def _same_place(bench: Bench) -> Place:
    """Return where candidates were timed: figures of one release come from one device."""
    place, times = bench.trial.place, bench.found.times
    device = "" if times is None else times.device
    return replace(place, target=replace(place.target, device=device))


def seal(bench: Bench) -> dict[str, Figure]:
    job = bench.job
    golden, golden_outputs = sealing.golden_rows(bench.golden, bench.found.golden_outputs)
    own = [item.file for item in job.upload.options.variants if item.file]
    inputs = {name: bench.digest(name) for name in (*DEPENDENCIES, *own)}
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


def _weigh(bench: Bench, shipped: Path) -> int:
    """Return what memory a device must have: of the golden rows that it will be sent, at once."""
    rows, _ = sealing.golden_rows(bench.golden, bench.found.golden_outputs)
    task = Weigh(str(shipped), lay_out(rows, shipped.parent, "weighed"))
    lab, folder = bench.job.laboratory, bench.folder
    found = lab.do(task, Weighed, gate="features", folder=folder)
    held = found.memory_bytes * limits.MEMORY_MARGIN
    return math.ceil(held / limits.MEMORY_STEP_BYTES) * limits.MEMORY_STEP_BYTES


def _describe(
    bench: Bench, inputs: dict[str, str], manifest: Manifest, digest: str, stated: str
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

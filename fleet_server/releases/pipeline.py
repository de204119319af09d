"""Staging: from the uploaded files to a release in the store, step by step.

One table says which steps there are and in which order; each may refuse, and then nothing of the
release is in the store. What is recorded about it, and when, is decided in
:mod:`fleet_server.releases.staging`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fleet_contract.manifest import Baseline
from fleet_server.releases import preparing, proving
from fleet_server.releases.bench import Bench, Job
from fleet_server.releases.gates import table
from fleet_server.releases.sealing import Sealed
from fleet_server.releases.states import Figure, Step


@dataclass(frozen=True, slots=True)
class Staged:
    """A release that passed every step and lies in the store."""

    sealed: Sealed
    baseline: Baseline


def stage(job: Job, on_step: Callable[[Step], None]) -> Staged:
    """Run all steps.

    Args:
        job: what to stage.
        on_step: called after each step; may raise to stop in between.

    Raises:
        Refusal: of the first step that refused.
    """
    bench = Bench(job)
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


STEPS: dict[str, Callable[[Bench], dict[str, Figure]]] = {
    "examination": preparing.examine,
    "data": preparing.read_data,
    "quantisation": preparing.quantise,
    "parity": preparing.compare,
    "variants": preparing.vary,
    "features": proving.measure,
    "gates": proving.judge,
    "sealing": proving.seal,
}

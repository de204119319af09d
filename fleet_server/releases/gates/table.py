"""The gates in their order, and what becomes of their verdicts.

One table says which there are, what to do about a refusal, and which may be overridden with a
reason: gates of quality, never those that keep a release the model that it claims to be.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from fleet_server.releases.gates import (
    completeness,
    cost,
    data_sanity,
    determinism,
    feature_schema,
    metric,
    reference,
    robustness,
    slices,
)
from fleet_server.releases.gates.given import Given
from fleet_server.releases.states import GateResult, Refusal

CUSTOM = "custom:"
"""Beginning of the names of the installation's own gates."""
_CUSTOM_ADVICE = "This gate is the installation's own; ask whoever wrote it."


@dataclass(frozen=True, slots=True)
class Gate:
    """How a gate judges, and what to do if it refuses."""

    judge: Callable[[Given], list[GateResult]]
    advice: str
    may_override: bool


GATES: Mapping[str, Gate] = {
    reference.NAME: Gate(reference.judge, reference.ADVICE, may_override=False),
    feature_schema.NAME: Gate(feature_schema.judge, feature_schema.ADVICE, may_override=False),
    data_sanity.NAME: Gate(data_sanity.judge, data_sanity.ADVICE, may_override=True),
    metric.NAME: Gate(metric.judge, metric.ADVICE, may_override=True),
    slices.NAME: Gate(slices.judge, slices.ADVICE, may_override=True),
    cost.LATENCY: Gate(cost.judge_latency, cost.LATENCY_ADVICE, may_override=True),
    cost.MEMORY: Gate(cost.judge_memory, cost.MEMORY_ADVICE, may_override=True),
    robustness.NAME: Gate(robustness.judge, robustness.ADVICE, may_override=True),
    determinism.NAME: Gate(determinism.judge, determinism.ADVICE, may_override=False),
    completeness.NAME: Gate(completeness.judge, completeness.ADVICE, may_override=True),
}


def may_override(name: str) -> bool:
    """Say whether a reason can let a release pass this gate."""
    if name.startswith(CUSTOM):
        return True
    return name in GATES and GATES[name].may_override


def judge(given: Given, overrides: Mapping[str, str]) -> list[GateResult]:
    """Return every gate's results; those that failed and are overridden have the reason."""
    results = [result for gate in GATES.values() for result in gate.judge(given)]
    return [_overridden(result, overrides) for result in [*results, *given.custom]]


def enforce(results: Sequence[GateResult]) -> None:
    """Refuse a release by the first result that failed and is not overridden.

    Raises:
        Refusal: with the gate, its figure and its bound.
    """
    for result in results:
        if not result.passed and not result.overridden:
            own = GATES.get(result.gate)
            raise Refusal(
                result.gate,
                _code(result.gate),
                result.note,
                _CUSTOM_ADVICE if own is None else own.advice,
                figure=result.figure,
                bound=result.bound,
            )


def _code(gate: str) -> str:
    if gate == feature_schema.NAME:
        return "schema_changed"
    return "custom_gate_failed" if gate.startswith(CUSTOM) else f"{gate.replace('-', '_')}_failed"


def _overridden(result: GateResult, overrides: Mapping[str, str]) -> GateResult:
    reason = overrides.get(result.gate, "")
    if result.passed or not reason or not may_override(result.gate):
        return result
    return msgspec.structs.replace(result, overridden=reason)

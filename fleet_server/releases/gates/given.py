"""What the gates are given: figures and outputs that were measured, never a model.

Decides the form of the evidence only. Rows are arrays by name whose first axis is the batch.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet_contract.manifest import TensorSpec
from fleet_server.releases.gates.exercised import Exercised
from fleet_server.releases.states import NOT_THE_TARGET, GateResult, Metric, OutputKind

Rows = Mapping[str, NDArray[np.generic]]
"""Name → array, the same number of rows for all."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Labelled rows on which both releases ran.

    Attributes:
        labels: one a row: the number of the class, or the value.
        slices: column's name → its code in each row.
        outputs: of what is to ship.
        production: outputs of the production release on the same rows; None if there is none, or
            it does not take them.
        why_not: why there are none of production.
    """

    labels: NDArray[np.generic]
    slices: Rows
    outputs: Rows
    production: Rows | None
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a release costs beside production's.

    Latencies are medians of single rows in turns, in microseconds, measured on what ``timed_on``
    says; memory is what a process of the server gained by loading the model and running it, in
    bytes.
    """

    latency_us: float
    production_latency_us: float
    memory_bytes: int
    production_memory_bytes: int
    timed_on: str = NOT_THE_TARGET


@dataclass(frozen=True, slots=True)
class SchemaChange:
    """That inputs, outputs or classes differ from the release before, and who says it may be.

    ``differences`` has a sentence for each; ``approval`` is the reason that was given.
    """

    differences: Sequence[str]
    approval: str
    baseline_rows: int
    golden_rows: int


@dataclass(frozen=True, slots=True)
class Given:
    """Everything that the gates judge; what is None was not sent, or cannot be compared."""

    kind: OutputKind
    outputs: Sequence[TensorSpec]
    metric: Metric
    metric_margin: float | None
    slice_margin: float | None
    calibration: Rows
    baseline: Rows
    states: Set[str]
    """The inputs that the model gets back from its own outputs."""
    reference: Rows | None
    """The training framework's outputs on the golden rows, by output."""
    float_outputs: Rows
    """The float model's outputs on the golden rows."""
    evaluation: Evaluation | None
    cost: Cost | None
    exercise: Exercised
    schema: SchemaChange
    metadata: Mapping[str, object]
    required_metadata: Sequence[str]
    custom: Sequence[GateResult]
    """What the installation's own gates found; they ran beforehand, in children."""

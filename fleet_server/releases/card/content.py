"""What a model card holds: plain data, for programs as it is, and for people once it is rendered.

Decides the form only. Whatever comes from the pusher is kept as it came: each form that is made of
a card escapes for itself.
"""

from typing import Any

import msgspec

from fleet_contract.manifest import TensorSpec
from fleet_server.releases.states import Candidate, Figure, GateResult


class StepLine(msgspec.Struct, frozen=True):
    """One step of staging and what it measured."""

    name: str
    took_ms: int
    figures: dict[str, Figure]


class WorstRow(msgspec.Struct, frozen=True):
    """A golden row on which the shipped model is far from the float one: its index in the golden
    set from 0, the largest difference, and the classes that both name, if they name any.
    """

    row: int
    difference: float
    float_class: str = ""
    shipped_class: str = ""


class Comparison(msgspec.Struct, frozen=True):
    """The shipped model against the float one on the golden rows.

    ``confusion`` counts rows: first index the float model's class, second the shipped model's, in
    the order of ``classes``; empty without classes, or with more than a table can hold.
    ``histogram`` counts rows by their largest difference, in equal bins from 0 to the largest.
    """

    rows: int
    agreement: float | None
    sqnr_db: float
    largest_difference: float
    worst: list[WorstRow]
    classes: list[str] = []
    confusion: list[list[int]] = []
    histogram: list[int] = []


class FeatureLine(msgspec.Struct, frozen=True):
    """One feature on the baseline data. ``shares`` add up to 1: of equal bins from ``minimum`` to
    ``maximum``, or of the ``labels``. ``missing`` counts nulls, NaN and infinities.
    """

    side: str
    name: str
    made_from: str
    rows: int
    missing: int
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    labels: list[str] = []
    shares: list[float] = []


class Needs(msgspec.Struct, frozen=True):
    """What running the artifact takes. ``memory_bytes`` was measured in a process of its own,
    ``numpy`` is the oldest version, empty for any."""

    artifact_bytes: int
    precision: str
    runtime: str
    opset: int
    ir_version: int
    operators: list[str]
    memory_bytes: int
    tools: dict[str, str]
    numpy: str = ""


class Previous(msgspec.Struct, frozen=True):
    """The release before. ``agreement`` and ``metadata`` are there if it has a card."""

    version: str
    needs: Needs
    agreement: float | None = None
    metadata: dict[str, Any] = {}


class Proofs(msgspec.Struct, frozen=True):
    """SHA-256 of what can be checked. ``signer`` is who signed the upload, empty if nobody."""

    manifest: str
    artifact: str
    source: str
    provenance: str
    inputs: dict[str, str]
    signer: str = ""


class Card(msgspec.Struct, frozen=True):
    """A model card. ``created_ms`` is in milliseconds since 1970; ``metadata`` is the pusher's,
    ``states`` maps an input to the output that is its value at the next step.
    """

    model: str
    version: str
    created_ms: int
    output_kind: str
    source_bytes: int
    recipe: str
    reason: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    metadata: dict[str, Any]
    candidates: list[Candidate]
    comparison: Comparison
    gates: list[GateResult]
    steps: list[StepLine]
    features: list[FeatureLine]
    needs: Needs
    previous: Previous | None
    proofs: Proofs
    states: dict[str, str] = {}
    form: int = 1

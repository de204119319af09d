"""What a release can be in while it is staged, and what is known about why it was refused."""

from enum import StrEnum

import msgspec

NOT_THE_TARGET = "the server's processor, not the target"
"""On what latencies are measured without a bench device."""

Figure = str | int | float | bool | None


class ReleaseState(StrEnum):
    """How far a release got. A refused version may be pushed again, any other never.

    ``UNSIGNED`` is staged but for the signature of whoever holds the family's key.
    """

    STAGING = "staging"
    UNSIGNED = "unsigned"
    STAGED = "staged"
    REVOKED = "revoked"
    REFUSED = "refused"


class Stage(StrEnum):
    """How far people let a staged release go; an approver moves it on, and never back.

    Of fleets whose environment is production only a release in ``PRODUCTION`` can be rolled out,
    and of no fleet one that is ``ARCHIVED``.
    """

    STAGING = "staging"
    PRODUCTION = "production"
    ARCHIVED = "archived"


class OutputKind(StrEnum):
    """How the first output is to be read.

    ``LOGITS`` and ``PROBABILITIES`` are class scores, a column a class. ``VALUES`` are numbers
    with no winner among them.
    """

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    VALUES = "values"


class Recipe(StrEnum):
    """How a candidate is made of the float model."""

    FLOAT = "float"
    GIVEN = "given"
    """Pushed with quantised weights, and taken as it is."""
    STATIC = "static"
    STATIC_7BIT = "static-7bit"
    STATIC_ALL = "static-all"
    DYNAMIC = "dynamic"
    DYNAMIC_MATMUL = "dynamic-matmul"
    FLOAT16 = "float16"
    WEIGHTS8 = "weights-int8"
    WEIGHTS16 = "weights-float16"
    MIXED = "mixed"
    MIXED_LAYERS = "mixed-layers"


class Candidate(msgspec.Struct, frozen=True):
    """One form of a model that was tried: how it was made, and what was measured.

    Latencies are medians of the processor's time that single rows take, in turns with the float
    model, and ``timed_on`` says on what; they are there for candidates that passed ``parity`` and
    are smaller. Those of the sequence are there for models with states, which get theirs back.
    """

    recipe: str
    passes: bool
    chosen: bool = False
    size_bytes: int | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    largest_difference: float | None = None
    sequence_agreement: float | None = None
    sequence_sqnr_db: float | None = None
    latency_us: float | None = None
    float_latency_us: float | None = None
    note: str = ""
    timed_on: str = ""


class Metric(StrEnum):
    """How good a model is on labelled rows; which way is better is in :mod:`.gates.metrics`."""

    ACCURACY = "accuracy"
    AUC = "auc"
    F1 = "f1"
    RMSE = "rmse"
    MAE = "mae"


class GateResult(msgspec.Struct, frozen=True):
    """One figure that a gate judged: its name, what it is, and the bound that it had to meet.

    ``bound`` is None where the figure is only recorded. ``note`` says in a sentence what was
    measured; ``overridden`` is the reason for which a figure that did not pass was let through.
    """

    gate: str
    name: str
    figure: float | None
    bound: float | None
    passed: bool
    note: str = ""
    overridden: str = ""


class Step(msgspec.Struct, frozen=True):
    """One finished step of staging; ``figures`` are for people and for the model card.

    ``candidates`` is the table of what the quantisation tried, ``gates`` what the gates judged.
    """

    name: str
    took_ms: int
    figures: dict[str, Figure] = {}
    candidates: list[Candidate] = []
    gates: list[GateResult] = []


class Problem(msgspec.Struct, frozen=True):
    """Why a release was refused.

    ``gate`` names the step or check; ``figure`` and ``bound`` are there if it measured something.
    """

    gate: str
    code: str
    detail: str
    advice: str
    figure: float | None = None
    bound: float | None = None


class Refusal(Exception):
    """A release failed a check of staging; nothing of it will be staged."""

    def __init__(
        self,
        gate: str,
        code: str,
        detail: str,
        advice: str,
        *,
        figure: float | None = None,
        bound: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.problem = Problem(gate, code, detail, advice, figure, bound)

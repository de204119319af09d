"""What the laboratory can be asked, and what it answers: the only words that cross the border.

Answers come from a process in which a hostile model may have run, so each field is bounded here.
Numbers of tensors cross as files of raw little-endian bytes, whose sizes follow from their shapes.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract.manifest import Runtime, TensorSpec
from fleet_server.releases import limits
from fleet_server.releases.gates.exercised import Exercised
from fleet_server.releases.interface import Interface
from fleet_server.releases.states import OutputKind, Problem, Recipe

Name = Annotated[str, Meta(max_length=200)]
Count = Annotated[int, Meta(ge=0, le=1 << 40)]
Version = Annotated[int, Meta(ge=0, le=1000)]
Operators = Annotated[list[Name], Meta(max_length=400)]
Microseconds = Annotated[float, Meta(ge=0, le=1e12)]
Text = Annotated[str, Meta(max_length=500)]


class Allowance(msgspec.Struct, frozen=True):
    """What one task may use: memory beyond what the child starts with, time of the processor and
    on the wall, and the size of a file that it writes.
    """

    memory_bytes: int
    cpu_s: int
    wall_s: float
    file_bytes: int


class RawTensor(msgspec.Struct, frozen=True):
    """A tensor in a file of its own. The first axis of ``shape`` is the batch."""

    name: str
    dtype: str
    shape: list[int]
    path: str


class Examine(msgspec.Struct, frozen=True, tag=True):
    """Check a model without running it, then run it on small and on absurd inputs.

    If it had to be brought into another form, that is written to ``target``.
    """

    model: str
    target: str = ""
    interface: Interface = Interface()


class Build(msgspec.Struct, frozen=True, tag=True):
    """Make a candidate in ``target``.

    Of the mixed recipes ``operators`` or ``layers`` are those in int8.
    """

    model: str
    recipe: Recipe
    calibration: list[RawTensor]
    target: str
    operators: list[str] = []
    layers: list[str] = []


class Survey(msgspec.Struct, frozen=True, tag=True):
    """Name the layers of a model that can be in int8; ``folder`` is for files in between."""

    model: str
    folder: str


class Run(msgspec.Struct, frozen=True, tag=True):
    """Run a model on all rows and write its outputs, one file each, to ``target`` + number.

    With ``states`` (input → output) rows are steps: of each ``steps`` rows in turn the first gives
    the state, the others take it from the step before.
    """

    model: str
    what: str
    inputs: list[RawTensor]
    outputs: list[TensorSpec]
    target: str
    states: dict[str, str] = {}
    steps: int = 1


class Race(msgspec.Struct, frozen=True, tag=True):
    """Time two models in turns, row by row, on one thread."""

    model: str
    rival: str
    inputs: list[RawTensor]
    most_ms: int


class Exercise(msgspec.Struct, frozen=True, tag=True):
    """Run a model on bad inputs, on slightly other ones, and on the same ones again.

    The float model that it was made of is run with missing values only.
    """

    model: str
    float_model: str
    inputs: list[RawTensor]
    outputs: list[TensorSpec]
    kind: OutputKind


class Weigh(msgspec.Struct, frozen=True, tag=True):
    """Load a model and run it on single rows, to see what memory that takes."""

    model: str
    inputs: list[RawTensor]


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Have an installed gate judge a submission; ``rows`` are its tensors by group.

    Everything is passed on as :class:`~fleet_server.releases.gates.custom.Submission` says.
    """

    gate: str
    release: str
    version: str
    kind: OutputKind
    artifact: str
    float_model: str
    rows: dict[str, list[RawTensor]]


Task = Examine | Build | Survey | Run | Race | Exercise | Weigh | Ask


class Examined(msgspec.Struct, frozen=True, tag=True):
    """A model that passed; shapes have None for the batch only.

    ``opset`` and ``ir_version`` are 0 for TFLite files, which have none. ``quantised`` says that
    the weights were quantised before they came here.
    ``changed_bytes`` is the size of what was written to the target, 0 for nothing.
    """

    inputs: Annotated[list[TensorSpec], Meta(min_length=1, max_length=64)]
    outputs: Annotated[list[TensorSpec], Meta(min_length=1, max_length=64)]
    opset: Version
    ir_version: Version
    operators: Operators
    changed_bytes: Count = 0
    runtime: Runtime = Runtime.ONNXRUNTIME
    quantised: bool = False


class Built(msgspec.Struct, frozen=True, tag=True):
    """A candidate, and what it demands of a runtime."""

    size_bytes: Count
    opset: Version
    ir_version: Version
    operators: Operators
    runtime: Runtime = Runtime.ONNXRUNTIME


class Surveyed(msgspec.Struct, frozen=True, tag=True):
    """The layers, those with the largest weights first."""

    layers: Annotated[list[Name], Meta(max_length=limits.LAYERS)]


class Ran(msgspec.Struct, frozen=True, tag=True):
    """The outputs were written."""


class Raced(msgspec.Struct, frozen=True, tag=True):
    """Medians of the processor's time over ``rounds`` single rows of each."""

    model_us: Microseconds
    rival_us: Microseconds
    rounds: Count


class Weighed(msgspec.Struct, frozen=True, tag=True):
    """What the process held before it loaded the model, and at most until it had run it."""

    rest_bytes: Count
    peak_bytes: Count

    @property
    def memory_bytes(self) -> int:
        """What it gained at most."""
        return max(0, self.peak_bytes - self.rest_bytes)


class Said(msgspec.Struct, frozen=True):
    """One finding of an installed gate."""

    name: Annotated[str, Meta(max_length=120)]
    figure: float | None
    bound: float | None
    passed: bool
    note: Text


class Asked(msgspec.Struct, frozen=True, tag=True):
    """What an installed gate found."""

    findings: Annotated[list[Said], Meta(max_length=32)]


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The task was not done, and why."""

    problem: Problem


Result = Examined | Built | Surveyed | Ran | Raced | Exercised | Weighed | Asked | Refused


class Request(msgspec.Struct, frozen=True):
    """A task, the only folder that it may write to, and what it may use."""

    task: Task
    folder: str
    allowance: Allowance


class Ending(StrEnum):
    """How a child ended that gave no result."""

    DONE = "done"
    CRASHED = "crashed"
    TIMED_OUT = "timed out"


class Answer(msgspec.Struct, frozen=True):
    """How the child ended, and its result's bytes, which the asker decodes."""

    ending: Ending
    detail: Annotated[str, Meta(max_length=200)]
    result: bytes
    peak_bytes: Count

"""What the laboratory can be asked, and what it answers: the only words that cross the border.

Answers come from a process in which a hostile model may have run, so each field is bounded here.
Numbers of tensors cross as files of raw little-endian bytes, whose sizes follow from their shapes.
"""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract.manifest import TensorSpec
from fleet_server.releases.states import Problem, Recipe

Name = Annotated[str, Meta(max_length=200)]
Count = Annotated[int, Meta(ge=0, le=1 << 40)]
Version = Annotated[int, Meta(ge=0, le=1000)]
Operators = Annotated[list[Name], Meta(max_length=400)]
Microseconds = Annotated[float, Meta(ge=0, le=1e12)]


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
    """Check a model without running it, then run it on small and on absurd inputs."""

    model: str


class Build(msgspec.Struct, frozen=True, tag=True):
    """Make a candidate in ``target``. For the mixed recipe ``operators`` are those in int8."""

    model: str
    recipe: Recipe
    calibration: list[RawTensor]
    target: str
    operators: list[str] = []


class Run(msgspec.Struct, frozen=True, tag=True):
    """Run a model on all rows and write its outputs, one file each, to ``target`` + number."""

    model: str
    what: str
    inputs: list[RawTensor]
    outputs: list[TensorSpec]
    target: str


class Race(msgspec.Struct, frozen=True, tag=True):
    """Time two models in turns, row by row, on one thread."""

    model: str
    rival: str
    inputs: list[RawTensor]
    most_ms: int


class Weigh(msgspec.Struct, frozen=True, tag=True):
    """Load a model and run it on some rows, and nothing else, to see what memory that takes."""

    model: str
    inputs: list[RawTensor]


Task = Examine | Build | Run | Race | Weigh


class Examined(msgspec.Struct, frozen=True, tag=True):
    """A model that passed; shapes have None for the batch only."""

    inputs: Annotated[list[TensorSpec], Meta(min_length=1, max_length=64)]
    outputs: Annotated[list[TensorSpec], Meta(min_length=1, max_length=64)]
    opset: Version
    ir_version: Version
    operators: Operators


class Built(msgspec.Struct, frozen=True, tag=True):
    """A candidate, and what it demands of a runtime."""

    size_bytes: Count
    opset: Version
    ir_version: Version
    operators: Operators


class Ran(msgspec.Struct, frozen=True, tag=True):
    """The outputs were written."""


class Raced(msgspec.Struct, frozen=True, tag=True):
    """Medians over ``rounds`` single rows of each."""

    model_us: Microseconds
    rival_us: Microseconds
    rounds: Count


class Weighed(msgspec.Struct, frozen=True, tag=True):
    """What the process held before it loaded the model, and at most until it had run it."""

    rest_bytes: Count
    peak_bytes: Count


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The task was not done, and why."""

    problem: Problem


Result = Examined | Built | Ran | Raced | Weighed | Refused


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

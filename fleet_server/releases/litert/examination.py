"""Examines an uploaded TFLite file without running it: the checks, in order.

1. Every table that is looked at lies within the file.  2. All weights are in the file.  3. One
signature, of the main graph.  4. Operators are built-in ones that devices have, and none keeps a
state.  5. Inputs and outputs are tensors of numbers whose first axis is the batch. LiteRT's own
verifier walks the rest of the tables when the file is first loaded, in the child.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fleet_contract.manifest import TensorSpec
from fleet_server.flatbuffer import Flatbuffer, OutOfBounds
from fleet_server.releases import limits
from fleet_server.releases.litert import operators
from fleet_server.releases.states import Refusal

# Places of fields in the tables of the TFLite schema, version 3.
_MODEL_CODES, _MODEL_SUBGRAPHS, _MODEL_BUFFERS, _MODEL_SIGNATURES = 1, 2, 4, 7
_MODEL_EXTERNAL_GROUPS, _MODEL_EXTERNAL_BUFFERS = 8, 9
_CODE_OLD, _CODE_CUSTOM, _CODE_BUILTIN = 0, 1, 3
_GRAPH_TENSORS, _GRAPH_INPUTS, _GRAPH_OUTPUTS, _GRAPH_OPERATORS = 0, 1, 2, 3
_OPERATOR_CODE, _OPERATOR_INPUTS, _OPERATOR_OUTPUTS = 0, 1, 2
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME, _TENSOR_QUANTISATION = 0, 1, 2, 3, 4
_TENSOR_IS_VARIABLE = 5
_QUANTISATION_SCALE = 2
_BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = 0, 1, 2
_SIGNATURE_INPUTS, _SIGNATURE_OUTPUTS, _SIGNATURE_GRAPH = 0, 1, 4
_MAP_NAME, _MAP_TENSOR = 0, 1

_DTYPES = {
    0: "float32",
    1: "float16",
    10: "float64",
    6: "bool",
    9: "int8",
    7: "int16",
    2: "int32",
    4: "int64",
    3: "uint8",
    16: "uint16",
    15: "uint32",
    12: "uint64",
}
"""TensorType → numpy's name."""
_NARROW = frozenset({3, 7, 9, 17, 19, 20})
"""TensorTypes of weights that were quantised: 2 to 16 bits."""
_MOST_AXES, _MOST_TENSORS = 8, 65_536

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Examined:
    """A model that passed; shapes have None for the batch only.

    ``quantised`` says that some of its weights are integers with a scale already.
    """

    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    operators: list[str]
    quantised: bool


def examine(data: bytes) -> Examined:
    """Examine the bytes of a TFLite file.

    Raises:
        Refusal: with the first check that failed.
    """
    try:
        return _Model(Flatbuffer(memoryview(data)), len(data)).examined()
    except (OutOfBounds, struct.error) as error:
        raise refuse(
            "not_tflite",
            f"The file is no whole TFLite model: {error}.",
            "Export it again; check the upload with sha256sum if it was copied around.",
        ) from error


def refuse(code: str, detail: str, advice: str) -> Refusal:
    """Return a refusal of this step."""
    return Refusal("examination", code, detail, advice)


@dataclass(slots=True)
class _Model:
    file: Flatbuffer
    size_bytes: int
    model: int = field(init=False)
    graphs: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.file.follow(0)
        self.graphs = self.file.tables(self.model, _MODEL_SUBGRAPHS)
        if not self.graphs or not self.file.tables(self.graphs[0], _GRAPH_OPERATORS):
            raise OutOfBounds("it has no graph")

    def examined(self) -> Examined:
        filled = self._buffers()
        names = self._signature()
        used, quantised = set(), False
        codes = self._codes()
        for graph in self.graphs:
            tensors = self.file.tables(graph, _GRAPH_TENSORS)
            for tensor in tensors:
                quantised |= self._check_tensor(tensor, filled)
            for operator in self.file.tables(graph, _GRAPH_OPERATORS):
                code = self.file.scalar(operator, _OPERATOR_CODE, "<I")
                used.add(_item(codes, code))
                for side in (_OPERATOR_INPUTS, _OPERATOR_OUTPUTS):
                    for number in self.file.numbers(operator, side, "<i", _MOST_TENSORS):
                        if number != -1:  # an optional input that is left out
                            _item(tensors, number)
        operators.check(used)
        return Examined(
            self._specs("input", _GRAPH_INPUTS, names[0]),
            self._specs("output", _GRAPH_OUTPUTS, names[1]),
            sorted(operators.NAMES[code] for code in used),
            quantised,
        )

    def _buffers(self) -> list[bool]:
        """Return which buffers hold something."""
        for place in (_MODEL_EXTERNAL_GROUPS, _MODEL_EXTERNAL_BUFFERS):
            if self.file.tables(self.model, place):
                raise refuse(
                    "external_data",
                    "Weights of the model lie in another file.",
                    "Export it with all its weights inside.",
                )
        filled = []
        for buffer in self.file.tables(self.model, _MODEL_BUFFERS):
            start = self.file.scalar(buffer, _BUFFER_OFFSET, "<Q")
            size = self.file.scalar(buffer, _BUFFER_SIZE, "<Q")
            if start > 1 and start + size > self.size_bytes:
                raise OutOfBounds("a buffer lies outside of it")
            filled.append(start > 1 or self.file.vector(buffer, _BUFFER_DATA) is not None)
        return filled

    def _codes(self) -> list[int]:
        """Return the numbers of the built-in operators."""
        found = []
        for code in self.file.tables(self.model, _MODEL_CODES):
            # Files from before schema 3a have the number, up to 127, in the older field alone.
            old = self.file.scalar(code, _CODE_OLD, "<b")
            number = max(old, self.file.scalar(code, _CODE_BUILTIN, "<i"))
            if number == operators.CUSTOM:
                raise operators.custom(self.file.name(code, _CODE_CUSTOM))
            found.append(number)
        return found

    def _check_tensor(self, tensor: int, filled: list[bool]) -> bool:
        """Return whether these are quantised weights."""
        number = self.file.scalar(tensor, _TENSOR_BUFFER, "<I")
        has_data = _item(filled, number)
        if self.file.scalar(tensor, _TENSOR_IS_VARIABLE, "<b"):
            raise operators.stateful("a variable")
        if not has_data or self.file.scalar(tensor, _TENSOR_TYPE, "<b") not in _NARROW:
            return False
        details = self.file.table(tensor, _TENSOR_QUANTISATION)
        scale = None if details is None else self.file.vector(details, _QUANTISATION_SCALE)
        return scale is not None

    def _signature(self) -> tuple[dict[int, str], dict[int, str]]:
        """Return tensor → name for inputs and outputs; empty where the file has no signature."""
        signatures = self.file.tables(self.model, _MODEL_SIGNATURES)
        if not signatures:
            return {}, {}
        graph = self.file.scalar(signatures[0], _SIGNATURE_GRAPH, "<I")
        if len(signatures) > 1 or graph != 0:
            raise refuse(
                "several_signatures",
                f"The model has {len(signatures)} signatures; a release answers one question.",
                "Export the one for inference only: converter.from_concrete_functions([one]).",
            )
        return self._named(signatures[0], _SIGNATURE_INPUTS), self._named(
            signatures[0], _SIGNATURE_OUTPUTS
        )

    def _named(self, signature: int, side: int) -> dict[int, str]:
        return {
            self.file.scalar(item, _MAP_TENSOR, "<I"): self.file.name(item, _MAP_NAME)
            for item in self.file.tables(signature, side)
        }

    def _specs(self, side: str, place: int, names: dict[int, str]) -> list[TensorSpec]:
        graph = self.graphs[0]
        tensors = self.file.tables(graph, _GRAPH_TENSORS)
        numbers = self.file.numbers(graph, place, "<i", 64)
        if not numbers:
            raise refuse("no_tensors", f"The model has no {side}.", "Export it again.")
        if names and set(names) != set(numbers):
            raise OutOfBounds(f"its signature names other {side}s than its graph")
        specs = [self._spec(side, _item(tensors, number), names.get(number)) for number in numbers]
        if len({spec.name for spec in specs}) < len(specs):
            raise refuse("bad_name", f"Two {side}s have the same name.", "Export it again.")
        return specs

    def _spec(self, side: str, tensor: int, given: str | None) -> TensorSpec:
        name = given or self.file.name(tensor, _TENSOR_NAME)
        shape = self.file.numbers(tensor, _TENSOR_SHAPE, "<i", _MOST_AXES)
        dtype = _DTYPES.get(self.file.scalar(tensor, _TENSOR_TYPE, "<b"))
        if not 0 < len(name) <= 200 or not name.isprintable():
            raise refuse(
                "bad_name",
                f"The name {name[:80]!r} of an {side} is empty, longer than 200 characters, or no "
                "text that can be shown.",
                "Name inputs and outputs when you export the model.",
            )
        if dtype is None:
            raise refuse(
                "unsupported_type",
                f"The {side} {name[:80]!r} is no tensor of numbers.",
                "Use float32 or integers.",
            )
        if not shape or shape[0] != 1 or min(shape) < 1:
            raise refuse(
                "not_batch_first",
                f"The {side} {name[:80]!r} is {shape}, not [1, fixed sizes…].",
                "Export it for one example: the first axis is the batch, and devices run row by "
                "row.",
            )
        if math.prod(shape) > limits.ROW_ELEMENTS:
            raise refuse(
                "tensor_too_large", f"The {side} {name[:80]!r} is too large.", "Make it smaller."
            )
        return TensorSpec(name, dtype, [None, *shape[1:]])


def _item(items: Sequence[ItemT], number: int) -> ItemT:
    if not 0 <= number < len(items):
        raise OutOfBounds("a number leads to nothing")
    return items[number]

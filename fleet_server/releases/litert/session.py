"""Runs a TFLite file the way a device does: LiteRT, one thread, row by row.

Decides how "any number of rows" is meant for files whose batch is 1: they are run row by row, never
resized. What exporters fold into constants for a batch of 1 would be wrong for another.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray


class LiteRtSession:
    """A loaded model, with the part of onnxruntime's session that the laboratory uses."""

    def __init__(self, data: bytes) -> None:
        """Verify the flatbuffer and load it.

        Raises:
            Exception: of many kinds; ValueError and RuntimeError are the interpreter's own.
        """
        self._interpreter = Interpreter(model_content=data, num_threads=1)
        self._interpreter.allocate_tensors()
        self._inputs = _by_name(self._interpreter, "inputs")
        self._outputs = _by_name(self._interpreter, "outputs")

    def run(
        self, names: Sequence[str] | None, rows: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Return the outputs of these names, None for all, stacked over the rows.

        Raises:
            Exception: as above; ValueError for other inputs than the model's, and for no row.
        """
        if set(rows) != set(self._inputs):
            raise ValueError(f"the model's inputs are {', '.join(self._inputs)}"[:300])
        wanted = [self._outputs[name] for name in names or self._outputs]
        parts: list[list[NDArray[Any]]] = [[] for _ in wanted]
        for index in range(len(next(iter(rows.values())))):
            for name, place in self._inputs.items():
                self._interpreter.set_tensor(place, rows[name][index : index + 1])
            self._interpreter.invoke()
            for part, place in zip(parts, wanted, strict=True):
                part.append(self._interpreter.get_tensor(place))
        return [np.concatenate(part) for part in parts]


def _by_name(interpreter: Any, side: str) -> dict[str, int]:
    """Return name → tensor: the signature's names where there is one, as examination takes them."""
    if interpreter.get_signature_list():
        runner = interpreter.get_signature_runner()
        found = runner.get_input_details() if side == "inputs" else runner.get_output_details()
        return {name: int(detail["index"]) for name, detail in found.items()}
    details = (
        interpreter.get_input_details() if side == "inputs" else interpreter.get_output_details()
    )
    return {detail["name"]: int(detail["index"]) for detail in details}

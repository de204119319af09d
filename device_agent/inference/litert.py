"""LiteRT as a runtime of the agent, where it is installed.

Decides how TFLite files run: verified as they are loaded from the bytes that were hashed, on as
many threads as onnxruntime gets, row by row as staging ran them, and one call at a time, since an
interpreter is not safe for several threads. The package is imported when it is first needed.
"""

import threading
from base64 import b64decode
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.errors import InferenceFailed, StepFailed
from device_agent.inference.artifact_file import read_verified
from device_agent.inference.tensors import InputCheck, Tensors
from fleet_contract.errors import Reason
from fleet_contract.manifest import Manifest, TensorSpec, Variant
from fleet_contract.manifest import Runtime as RuntimeName

PACKAGE = "ai-edge-litert"

TINY_MODEL = b64decode(
    b"GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAYAAAA6AAAAAMAAAABAAAABAAAACD///8BAAAAEAAAAAwA"
    b"FAAQAAwACAAEAAwAAAAQAAAAUAAAAFQAAABYAAAAAQAAABQAAAAAAA4AFAAAABAADAALAAQADgAAABAAAAAAAAAL"
    b"DAAAABAAAAB4////AQAAAAEAAAACAAAAAAAAAAAAAAABAAAAAQAAAAEAAAAAAAAAAgAAADQAAAAEAAAA4P///wgA"
    b"AAAMAAAAAQAAAHkAAAACAAAAAQAAAAIAAAAMAAwACAAAAAAABAAMAAAACAAAAAwAAAABAAAAeAAAAAIAAAABAAAA"
    b"AgAAAAEAAAAIAAAABAAEAAQAAAA="
)
"""A TFLite file with y = x + x for two float32: there is nothing on a device to write it with."""


class LiteRtSession:
    """An interpreter of LiteRT on the CPU. Calls from several threads wait for each other."""

    def __init__(
        self, model: bytes, *, inputs: list[TensorSpec], outputs: list[TensorSpec], threads: int = 1
    ) -> None:
        """Verify and load; ``inputs`` and ``outputs`` are what the manifest promises.

        Raises:
            StepFailed: ``broken_model`` if it cannot be loaded or is not as promised.
        """
        self._check = InputCheck(inputs)
        self._lock = threading.Lock()
        try:
            from ai_edge_litert.interpreter import Interpreter

            self._interpreter = Interpreter(model_content=model, num_threads=threads)
            self._interpreter.allocate_tensors()
            found = _details(self._interpreter)
        except Exception as error:  # the runtime's errors share no base but this one
            raise StepFailed(Reason.BROKEN_MODEL, f"not loaded: {_one_line(error)}") from error
        self._inputs = _places("input", found[0], inputs)
        self._outputs = _places("output", found[1], outputs)
        self._specs = outputs
        if len(found[0]) != len(inputs):
            names = sorted(found[0].keys() - self._inputs.keys())
            raise StepFailed(Reason.BROKEN_MODEL, f"inputs {names} are not in the manifest")

    def check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Raise InputRejected unless these are inputs of the model."""
        self._check(inputs)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """Return the outputs by name.

        Raises:
            InferenceFailed: whatever the runtime says.
        """
        rows = len(next(iter(inputs.values())))
        results = {
            spec.name: np.empty((rows, *(size or 1 for size in spec.shape[1:])), spec.dtype)
            for spec in self._specs
        }
        try:
            with self._lock:
                for row in range(rows):
                    for name, place in self._inputs.items():
                        self._interpreter.set_tensor(place, inputs[name][row : row + 1])
                    self._interpreter.invoke()
                    for name, place in self._outputs.items():
                        results[name][row : row + 1] = self._interpreter.get_tensor(place)
        except Exception as error:  # as above
            raise InferenceFailed(_one_line(error)) from error
        return results


class LiteRuntime:
    """LiteRT; ``threads`` work on one inference."""

    name = RuntimeName.LITERT

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    @property
    def version(self) -> str:
        return metadata.version(PACKAGE)

    def load(self, path: Path, manifest: Manifest, variant: Variant) -> LiteRtSession:
        """Return a session of exactly the bytes that the manifest names.

        Raises:
            StepFailed: with the reason why not.
        """
        model = read_verified(path, variant.artifact)
        return LiteRtSession(
            model, inputs=manifest.inputs, outputs=manifest.outputs, threads=self._threads
        )


def works() -> bool:
    """Return whether LiteRT is there and gives the right answer to a tiny model."""
    given, answer = TensorSpec("x", "float32", [None, 2]), TensorSpec("y", "float32", [None, 2])
    try:
        session = LiteRtSession(TINY_MODEL, inputs=[given], outputs=[answer])
        outputs = session.run({"x": np.array([[1.5, -2.0]], np.float32)})
    except (StepFailed, InferenceFailed):
        return False
    return bool(np.array_equal(outputs["y"], [[3.0, -4.0]]))


def _details(interpreter: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return name → detail of inputs and outputs: by the signature, if there is one."""
    if interpreter.get_signature_list():
        runner = interpreter.get_signature_runner()
        return runner.get_input_details(), runner.get_output_details()
    return (
        {detail["name"]: detail for detail in interpreter.get_input_details()},
        {detail["name"]: detail for detail in interpreter.get_output_details()},
    )


def _places(side: str, found: dict[str, Any], promised: list[TensorSpec]) -> dict[str, int]:
    """Return name → tensor; each must be of the type and shape that the manifest promises."""
    for spec in promised:
        detail = found.get(spec.name)
        one = [1, *spec.shape[1:]]
        if (
            detail is None
            or np.dtype(detail["dtype"]).name != spec.dtype
            or list(detail["shape"]) != one
        ):
            raise StepFailed(
                Reason.BROKEN_MODEL,
                f"{side} {spec.name!r} is promised as {spec.dtype} {one}; the model has "
                + ("none" if detail is None else f"{detail['dtype'].__name__} {detail['shape']}"),
            )
    return {spec.name: int(found[spec.name]["index"]) for spec in promised}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

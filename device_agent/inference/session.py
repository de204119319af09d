"""What a runtime is to the agent, and onnxruntime as the first of them.

Decides how a session is made on a small device: from the bytes that were hashed, with one thread
and no spinning unless told otherwise, without files beside the model. Which release is loaded is
decided in the core; whether it is fit is found out by the probe.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import onnxruntime
from numpy.typing import NDArray

from device_agent.errors import InferenceFailed, StepFailed
from device_agent.inference.artifact_file import read_verified
from device_agent.inference.tensors import InputCheck, Tensors
from fleet_contract.errors import Reason
from fleet_contract.manifest import Manifest, TensorSpec, Variant
from fleet_contract.manifest import Runtime as RuntimeName

_NOWHERE = os.devnull
"""A model from bytes would look for external data in the working folder; below this there is
nothing. Staging rejects external data, and a signed release that asks for it still fails."""

_ELEMENTS = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(string)": "object",
    **{f"tensor({name})": name for name in ("int8", "int16", "int32", "int64", "bool")},
    **{f"tensor({name})": name for name in ("uint8", "uint16", "uint32", "uint64")},
}


class ModelSession(Protocol):
    """A loaded model. Safe to call from several threads at once."""

    def check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Raise InputRejected unless these are inputs of the model."""
        ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """Return the outputs by name. Raises InferenceFailed."""
        ...


class Loader(Protocol):
    """Something that makes sessions."""

    def load(self, path: Path, manifest: Manifest, variant: Variant) -> ModelSession:
        """Return a session of the artifact at ``path``. Raises StepFailed."""
        ...


class Runtime(Loader, Protocol):
    """Something that executes artifacts of one kind."""

    @property
    def name(self) -> RuntimeName: ...

    @property
    def version(self) -> str: ...


class OnnxSession:
    """A session of onnxruntime on the CPU."""

    def __init__(
        self, model: bytes, *, inputs: list[TensorSpec], outputs: list[TensorSpec], threads: int = 1
    ) -> None:
        """Create the session; ``inputs`` and ``outputs`` are what the manifest promises.

        Raises:
            StepFailed: ``broken_model`` if it cannot be created or is not as promised.
        """
        self._check = InputCheck(inputs)
        try:
            self._session = onnxruntime.InferenceSession(
                model, _options(threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime's errors share no base but this one
            raise StepFailed(Reason.BROKEN_MODEL, f"not loaded: {_one_line(error)}") from error
        _compare("input", self._session.get_inputs(), inputs)
        _compare("output", self._session.get_outputs(), outputs)
        self._output_names = [spec.name for spec in outputs]

    def check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Raise InputRejected unless these are inputs of the model."""
        self._check(inputs)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """Return the outputs by name.

        Raises:
            InferenceFailed: whatever the runtime says.
        """
        try:
            feed = inputs if isinstance(inputs, dict) else dict(inputs)
            values = self._session.run(self._output_names, feed)
        except Exception as error:  # as above
            raise InferenceFailed(_one_line(error)) from error
        return dict(zip(self._output_names, values, strict=True))


class OnnxRuntime:
    """onnxruntime; ``threads`` work on one inference.

    With one thread a session starts none of its own, so that the number of threads stays constant
    over any number of swaps. With more, each session has a pool of ``threads - 1``, without
    spinning, that ends with the session. The process-wide pool that onnxruntime also offers is
    left to the application, which may use onnxruntime itself.
    """

    name = RuntimeName.ONNXRUNTIME

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    @property
    def version(self) -> str:
        return str(onnxruntime.__version__)

    def load(self, path: Path, manifest: Manifest, variant: Variant) -> OnnxSession:
        """Return a session of exactly the bytes that the manifest names.

        They are hashed and loaded from memory: creation takes longer for large models than from
        a path, but a path could name other bytes by the time the runtime opens it.

        Raises:
            StepFailed: with the reason why not.
        """
        model = read_verified(path, variant.artifact)
        return OnnxSession(
            model, inputs=manifest.inputs, outputs=manifest.outputs, threads=self._threads
        )


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal: failures come as exceptions, stderr is not ours
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", _NOWHERE
    )
    return options


def _compare(side: str, found: list[Any], promised: list[TensorSpec]) -> None:
    types = {item.name: _ELEMENTS.get(item.type, item.type) for item in found}
    ranks = {item.name: len(item.shape) for item in found}
    for spec in promised:
        if types.get(spec.name) != spec.dtype or ranks[spec.name] != len(spec.shape):
            raise StepFailed(
                Reason.BROKEN_MODEL,
                f"{side} {spec.name!r} is promised as {spec.dtype} of rank {len(spec.shape)}, "
                f"the model has {types.get(spec.name, 'none')} "
                f"of rank {ranks.get(spec.name, 'none')}",
            )
    if side == "input" and len(found) != len(promised):
        names = sorted(types.keys() - {spec.name for spec in promised})
        raise StepFailed(Reason.BROKEN_MODEL, f"inputs {names} are not in the manifest")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

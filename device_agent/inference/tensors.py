"""Checking tensors against the manifest before a runtime sees them.

Decides what inputs a release accepts: names, types and shapes of its manifest, nothing converted.
A silent conversion (float64 to float32, a transposed image) is how a model becomes wrong in the
field; the caller is told instead.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.errors import InputRejected, StepFailed
from fleet_contract.errors import Reason
from fleet_contract.manifest import TensorSpec

Tensors = dict[str, NDArray[Any]]
"""Name → array whose first axis is the batch."""


def numpy_type(name: str) -> np.dtype[Any]:
    """Return the type with numpy's name ``name``; numbers, booleans, text and nothing else.

    Raises:
        StepFailed: ``broken_model`` for any other name.
    """
    if name == "object":
        return np.dtype(object)
    try:
        found: np.dtype[Any] = np.dtype(name)
    except (TypeError, ValueError, SyntaxError) as error:
        raise StepFailed(Reason.BROKEN_MODEL, f"no tensor has type {name[:40]!r}") from error
    if found.kind not in "biufc" or found.name != name:
        raise StepFailed(Reason.BROKEN_MODEL, f"no tensor has type {name[:40]!r}")
    return found


class InputCheck:
    """The inputs of one release, prepared so that a check costs about a microsecond."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self._checks = [
            (
                spec.name,
                numpy_type(spec.dtype),
                len(spec.shape),
                [(axis, size) for axis, size in enumerate(spec.shape) if size is not None],
                spec,
            )
            for spec in specs
        ]

    def __call__(self, inputs: Mapping[str, object]) -> None:
        """Return if these are inputs of the release.

        Raises:
            InputRejected: naming the first input that is not, and what it should be.
        """
        for name, dtype, rank, fixed, spec in self._checks:
            array = inputs.get(name)
            if not isinstance(array, np.ndarray):
                raise InputRejected(
                    f"input {name!r} is {'missing' if array is None else 'no numpy array'}; "
                    f"expected {_describe(spec)}"
                )
            if array.dtype != dtype or array.ndim != rank:
                raise _wrong(array, spec)
            for axis, size in fixed:
                if array.shape[axis] != size:
                    raise _wrong(array, spec)
        if len(inputs) != len(self._checks):
            known = {check[0] for check in self._checks}
            extra = sorted(str(name)[:80] for name in inputs if name not in known)
            raise InputRejected(f"the model has no input {', '.join(extra)}")


def _wrong(array: NDArray[Any], spec: TensorSpec) -> InputRejected:
    return InputRejected(
        f"input {spec.name!r} is {array.dtype} {list(array.shape)}; expected {_describe(spec)}"
    )


def _describe(spec: TensorSpec) -> str:
    sizes = ", ".join("any" if size is None else str(size) for size in spec.shape)
    return f"{spec.dtype} [{sizes}]"

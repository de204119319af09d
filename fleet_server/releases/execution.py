"""Runs a model on example rows, the way a device does: one thread, in small batches."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fleet_contract.manifest import Runtime, TensorSpec
from fleet_server.releases import limits
from fleet_server.releases.examples import Rows, count
from fleet_server.releases.formats import runtime_of
from fleet_server.releases.states import Refusal

BATCH_ROWS = 256

_ALLOCATION = re.compile(r"allocate memory for requested buffer of size (\d{1,20})")
"""What onnxruntime says when there is no more."""


class Session(Protocol):
    """A loaded model."""

    def run(
        self, names: Sequence[str] | None, rows: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Return the outputs of these names, None for all."""
        ...


def session(data: bytes) -> Session:
    """Load a model as devices do.

    Raises:
        Exception: of many kinds, whatever the runtime raises.
    """
    if runtime_of(data) is Runtime.LITERT:
        # Only a child that needs it pays for the import.
        from fleet_server.releases.litert.session import LiteRtSession

        return LiteRtSession(data)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    loaded = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return cast(Session, loaded)


def probe(data: bytes, inputs: Rows, *, absurd: bool) -> None:
    """Load a model and run it once, whatever it returns.

    Raises:
        Refusal: ``does_not_run`` if it fails on inputs that are not ``absurd``.
    """
    try:
        loaded = session(data)
        loaded.run(None, inputs)
    except Exception as error:  # onnxruntime raises many kinds, with no common root of its own
        if not absurd:
            raise _does_not_run("model", error) from error


def run(data: bytes, rows: Rows, outputs: Sequence[TensorSpec], what: str) -> Rows:
    """Return the outputs of a model on all rows.

    Args:
        data: the model file.
        rows: its inputs.
        outputs: what it declares to return.
        what: the model's name in messages.

    Raises:
        Refusal: ``does_not_run`` if it fails, ``wrong_outputs`` if it returns anything but finite
            numbers of the declared type and shape.
    """
    names = [spec.name for spec in outputs]
    parts: list[list[NDArray[np.generic]]] = []
    try:
        loaded = session(data)
        for start in range(0, count(rows), BATCH_ROWS):
            batch = {name: array[start : start + BATCH_ROWS] for name, array in rows.items()}
            parts.append([np.asarray(part) for part in loaded.run(names, batch)])
    except Exception as error:  # onnxruntime raises many kinds, with no common root of its own
        raise _does_not_run(what, error) from error
    results: Rows = {}
    for index, spec in enumerate(outputs):
        try:
            results[spec.name] = np.concatenate([part[index] for part in parts])
        except ValueError as error:
            raise _wrong_output(spec, what) from error
        if not _fits(results[spec.name], spec, count(rows)):
            raise _wrong_output(spec, what)
    return results


def follow(
    data: bytes,
    rows: Rows,
    outputs: Sequence[TensorSpec],
    what: str,
    *,
    states: Mapping[str, str],
    steps: int,
) -> Rows:
    """Return the outputs of a model that gets its own states back, step by step.

    Args:
        data: the ONNX file.
        rows: its inputs, in the order of time; the number of rows is a multiple of ``steps``.
        outputs: what it declares to return.
        what: the model's name in messages.
        states: input → output that is its value at the next step.
        steps: length of a sequence. All sequences advance together, each begins with the state of
            its first row.

    Raises:
        Refusal: as :func:`run` does.
    """
    names = [spec.name for spec in outputs]
    given = {name: array[::steps] for name, array in rows.items() if name in states}
    parts: list[dict[str, NDArray[np.generic]]] = []
    try:
        loaded = session(data)
        for step in range(steps):
            fed = {name: array[step::steps] for name, array in rows.items()} | given
            found = dict(zip(names, map(np.asarray, loaded.run(names, fed)), strict=True))
            given = {name: found[output] for name, output in states.items()}
            parts.append(found)
    except Exception as error:  # onnxruntime raises many kinds, with no common root of its own
        raise _does_not_run(what, error) from error
    results: Rows = {}
    for spec in outputs:
        try:
            # [sequences, steps, …] → one axis, as the rows came.
            joined = np.stack([part[spec.name] for part in parts], axis=1)
            results[spec.name] = joined.reshape(-1, *joined.shape[2:])
        except ValueError as error:
            raise _wrong_output(spec, what) from error
        if not _fits(results[spec.name], spec, count(rows)):
            raise _wrong_output(spec, what)
    return results


def _fits(array: NDArray[np.generic], spec: TensorSpec, rows: int) -> bool:
    return (
        list(array.shape) == [rows, *spec.shape[1:]]
        and array.dtype == np.dtype(spec.dtype)
        and (array.dtype.kind != "f" or bool(np.isfinite(array).all()))
    )


def _does_not_run(what: str, error: Exception) -> Refusal:
    why = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    asked = _ALLOCATION.search(str(error))
    if asked is not None or "bad_alloc" in why:
        return Refusal(
            "execution",
            "too_much_memory",
            f"The {what} asks for more memory than a trial may use.",
            "Look for Expand, Tile and ConstantOfShape with huge shapes; a device has less.",
            figure=None if asked is None else float(asked[1]),
            bound=float(limits.CHILD_MEMORY_BYTES),
        )
    return Refusal(
        "execution",
        "does_not_run",
        f"The {what} does not run: {why}",
        "Try it where you export it, in the devices' runtime and with your golden inputs.",
    )


def _wrong_output(spec: TensorSpec, what: str) -> Refusal:
    return Refusal(
        "execution",
        "wrong_outputs",
        f"Output {spec.name!r} of the {what} is not finite {spec.dtype} of "
        f"{['n', *spec.shape[1:]]} on the example rows.",
        "Look for NaN, infinity and axes that are mixed up, on your golden inputs.",
    )

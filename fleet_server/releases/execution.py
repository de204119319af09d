"""Runs a model on example rows, the way a device does: one thread, in small batches."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fleet_contract.manifest import Runtime, TensorSpec
from fleet_server.releases.examples import Rows, count
from fleet_server.releases.formats import runtime_of
from fleet_server.releases.states import Refusal

BATCH_ROWS = 256


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


def _fits(array: NDArray[np.generic], spec: TensorSpec, rows: int) -> bool:
    return (
        list(array.shape) == [rows, *spec.shape[1:]]
        and array.dtype == np.dtype(spec.dtype)
        and (array.dtype.kind != "f" or bool(np.isfinite(array).all()))
    )


def _does_not_run(what: str, error: Exception) -> Refusal:
    why = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
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

"""Golden vectors: what a release must answer on this device, in its own runtime.

Decides how the file is read and when outputs are close enough. Bit equality is never asked for:
other processors round otherwise. How close is close enough was decided at staging and is signed
with the manifest.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.errors import StepFailed
from device_agent.inference.tensors import Tensors, numpy_type
from fleet_contract import codec, limits
from fleet_contract.errors import Reason, Refused
from fleet_contract.features import FeatureSchema, Reduction
from fleet_contract.manifest import GoldenFile, GoldenVectors, Manifest, TensorData

GOLDEN_BYTES = 64 * 1024 * 1024
"""Cap on the file's size: 100 colour images of 224 by 224 in float32 take 58 MiB."""

_SCORES = {
    Reduction.TOP_CLASS,
    Reduction.TOP_PROBABILITY,
    Reduction.ENTROPY,
    Reduction.MARGIN,
}


@dataclass(frozen=True)
class Golden:
    """Inputs, and the outputs that belong to them."""

    inputs: Tensors
    outputs: Tensors


def read_golden(data: bytes) -> Golden:
    """Return the golden vectors in these bytes.

    Raises:
        StepFailed: ``golden_mismatch`` if they are none.
    """
    try:
        file = codec.decode_msgpack(data, GoldenFile, limit_bytes=GOLDEN_BYTES)
    except Refused as refused:
        raise StepFailed(Reason.GOLDEN_MISMATCH, refused.detail) from refused
    if not file.inputs or not file.outputs:
        raise StepFailed(Reason.GOLDEN_MISMATCH, "the golden file holds no vectors")
    return Golden(
        {tensor.name: _array(tensor) for tensor in file.inputs},
        {tensor.name: _array(tensor) for tensor in file.outputs},
    )


def read_rows(data: bytes) -> Tensors:
    """Return the input rows of a bench job.

    Raises:
        StepFailed: ``malformed`` if they are none.
    """
    try:
        tensors = codec.decode_msgpack(data, list[TensorData], limit_bytes=limits.BENCH_ROWS_BYTES)
        rows = {tensor.name: _array(tensor) for tensor in tensors}
    except Refused as refused:
        raise StepFailed(Reason.MALFORMED, refused.detail) from refused
    except StepFailed as failed:
        raise StepFailed(Reason.MALFORMED, failed.detail) from failed
    counts = {len(array) if array.ndim else 0 for array in rows.values()}
    if len(counts) != 1 or 0 in counts:
        raise StepFailed(Reason.MALFORMED, "the inputs have not the same number of rows")
    return rows


def first_row(golden: Golden, manifest: Manifest) -> Tensors:
    """Return the inputs cut to one row where the release takes any number of rows."""
    free = {spec.name for spec in manifest.inputs if spec.shape and spec.shape[0] is None}
    return {
        name: array[:1] if name in free and array.ndim else array
        for name, array in golden.inputs.items()
    }


def difference(
    golden: Golden, outputs: Tensors, wanted: GoldenVectors, scores: str | None
) -> str | None:
    """Return how the outputs differ by more than is allowed, None if they do not.

    ``scores`` names the output that holds class scores, if one does.
    """
    for name, expected in golden.outputs.items():
        found = outputs.get(name)
        if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
            return f"output {name!r} is missing or has another type or shape"
        gap = _largest_gap(expected, found)
        allowed = wanted.differences.get(name, wanted.largest_difference)
        if not gap <= allowed:
            return f"output {name!r} is off by {gap:.6g}, allowed are {allowed:g}"
    if wanted.agreement > 0:
        name = scores if scores in golden.outputs else next(iter(golden.outputs))
        share = float(np.mean(agreeing(golden.outputs[name], outputs[name])))
        if share < wanted.agreement:
            return (
                f"{share:.1%} of the rows have the same winning class, {wanted.agreement:.1%} must"
            )
    return None


def class_scores(schema: FeatureSchema) -> str | None:
    """Return the output that the schema reads as class scores, None if there is none."""
    sources = [feature.source for feature in schema.outputs.categorical]
    sources += [feature.source for feature in schema.outputs.numeric]
    return next((source.tensor for source in sources if source.reduction in _SCORES), None)


def agreeing(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a bool per row: same winning class, or same value where a row is a single one."""
    rows = left.reshape(len(left), -1), right.reshape(len(right), -1)
    if rows[0].shape[1] == 1:
        return np.asarray(rows[0][:, 0] == rows[1][:, 0])
    return np.asarray(rows[0].argmax(axis=1) == rows[1].argmax(axis=1))


def _largest_gap(expected: NDArray[Any], found: NDArray[Any]) -> float:
    if not expected.size:
        return 0.0
    if expected.dtype.kind == "b":
        return float((expected != found).any())
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    # The same infinity or NaN at the same place is no difference; a NaN at one side is a total one.
    gaps[(expected == found) | (np.isnan(expected) & np.isnan(found))] = 0.0
    return float(np.nan_to_num(gaps, nan=np.inf).max())


def _array(tensor: TensorData) -> NDArray[Any]:
    dtype = numpy_type(tensor.dtype)
    shape = tensor.shape
    if dtype.kind not in "biuf" or len(shape) > 8 or min(shape, default=0) < 0:
        raise StepFailed(Reason.GOLDEN_MISMATCH, f"tensor {tensor.name[:80]!r} is of no known form")
    if prod(shape) * dtype.itemsize != len(tensor.data):
        raise StepFailed(
            Reason.GOLDEN_MISMATCH,
            f"tensor {tensor.name[:80]!r} has {len(tensor.data)} bytes for shape {shape[:8]}",
        )
    # A copy: the runtime may ask for aligned memory, and the file's bytes can go.
    return np.frombuffer(tensor.data, dtype.newbyteorder("<")).reshape(shape).astype(dtype)

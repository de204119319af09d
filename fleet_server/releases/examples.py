"""The example data that comes with a model: calibration, golden and baseline rows.

Decides whether they fit the model's inputs, and how many rows of them are used.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleet_contract.manifest import TensorSpec
from fleet_server.releases import archives, limits
from fleet_server.releases.pieces import pieces
from fleet_server.releases.shelf import Shelf
from fleet_server.releases.states import Refusal

Rows = dict[str, NDArray[np.generic]]
"""Input name → array whose first axis is the batch, the same length for all."""


def read_rows(
    path: Path,
    field: str,
    inputs: Sequence[TensorSpec],
    *,
    least: int,
    most: int,
    aside: tuple[str, ...] = (),
) -> Rows:
    """Return the first rows of an uploaded npz file, in the types of the model's inputs.

    Args:
        path: of the npz file.
        field: the name under which it was uploaded, for messages.
        inputs: of the model.
        least: fewer rows are refused.
        most: more rows are left out.
        aside: how the names of other arrays may begin, which are left out.

    Raises:
        Refusal: if names, types, shapes or numbers of rows do not fit.
    """
    headers = archives.inspect(path, field)
    wanted = [spec.name for spec in inputs]
    given = {name for name in headers if name in wanted or not name.startswith(aside or "\0")}
    if given != set(wanted):
        raise Refusal(
            "data",
            "wrong_inputs",
            f"{field} holds {', '.join(sorted(headers))[:200]}; "
            f"the model's inputs are {', '.join(wanted)[:200]}.",
            f"Name the arrays as the inputs: numpy.savez(file, {wanted[0]}=array).",
        )
    for spec in inputs:
        _check_form(headers[spec.name], spec, field)
    counts = {headers[name].shape[0] for name in wanted}
    if len(counts) > 1 or not least <= max(counts) <= limits.ROWS:
        raise Refusal(
            "data",
            "wrong_rows",
            f"{field} has {' and '.join(map(str, sorted(counts)))} rows.",
            f"Send {least} to {limits.ROWS} examples, the same number for each input.",
            figure=max(counts),
            bound=least if max(counts) < least else limits.ROWS,
        )
    # A byte a number in the file may be eight in the model's type.
    size_bytes = min(*counts, most) * row_bytes(inputs)
    if size_bytes > limits.ARRAYS_BYTES:
        raise Refusal(
            "data",
            "arrays_too_large",
            f"The rows used of {field} have {size_bytes} bytes as the model takes them.",
            f"Send fewer rows: at most {limits.ARRAYS_BYTES} bytes of numbers.",
            figure=size_bytes,
            bound=limits.ARRAYS_BYTES,
        )
    arrays = archives.load(path, field, wanted, rows=most)
    with Shelf(path.parent) as shelf:
        for spec in inputs:
            array = arrays[spec.name]
            shelf.put(spec.name, _converted(array, spec, field), np.dtype(spec.dtype), array.shape)
        return shelf.arrays()


def row_bytes(specs: Sequence[TensorSpec]) -> int:
    """Return what one row of these tensors takes, all together."""
    return sum(
        math.prod(size or 1 for size in spec.shape) * np.dtype(spec.dtype).itemsize
        for spec in specs
    )


def _check_form(header: archives.ArrayHeader, spec: TensorSpec, field: str) -> None:
    dtype = np.dtype(spec.dtype)
    fits = len(header.shape) == len(spec.shape) and list(header.shape[1:]) == spec.shape[1:]
    if not fits or not np.can_cast(header.dtype, dtype, "same_kind"):
        raise Refusal(
            "data",
            "wrong_shape",
            f"{spec.name!r} in {field} is {header.dtype.name} {list(header.shape)}; "
            f"the model takes {spec.dtype} {['n', *spec.shape[1:]]}.",
            "Save it as the model takes it, one example a row.",
        )


def _converted(array: NDArray[np.generic], spec: TensorSpec, field: str) -> Iterator[memoryview]:
    """Yield the numbers of an array in the type of its input."""
    dtype = np.dtype(spec.dtype)
    for piece in pieces(array):
        with np.errstate(over="ignore"):  # what does not fit becomes infinity, and is refused
            found = np.ascontiguousarray(piece, dtype)
        if dtype.kind == "f":
            _check_all(np.isfinite(found), "not_finite", "NaN or infinity", spec, field)
        elif dtype.kind in "iu":
            what = f"numbers that {spec.dtype} cannot hold"
            _check_all(found == piece, "does_not_fit", what, spec, field)
        yield found.data.cast("B")


def _check_all(fine: NDArray[np.bool_], code: str, what: str, spec: TensorSpec, field: str) -> None:
    wrong = int(fine.size - np.count_nonzero(fine))
    if wrong:
        raise Refusal(
            "data",
            code,
            f"{spec.name!r} in {field} holds {what}.",
            "Send examples as the model sees them in use, in the types that it takes.",
            figure=wrong,
            bound=0,
        )


def check_varied(rows: Rows, field: str, *, least: int) -> None:
    """Check that there are enough different rows: a hundred times the same one is one row.

    Raises:
        Refusal: ``rows_alike``.
    """
    seen: set[bytes] = set()
    for index in range(count(rows)):
        hasher = hashlib.sha256()
        for array in rows.values():
            hasher.update(array[index : index + 1].tobytes())
        seen.add(hasher.digest())
        if len(seen) >= least:
            return
    raise Refusal(
        "data",
        "rows_alike",
        f"{field} has {len(seen)} different rows.",
        "Draw them from what the model sees in use.",
        figure=len(seen),
        bound=least,
    )


def count(rows: Rows) -> int:
    """Return the number of rows."""
    return len(next(iter(rows.values())))

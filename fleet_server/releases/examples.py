"""The example data that comes with a model: calibration, golden and baseline rows.

Decides whether they fit the model's inputs, and how many rows of them are used.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleet_contract.manifest import TensorSpec
from fleet_server.releases import archives, limits
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
        header = headers[spec.name]
        if list(header.shape[1:]) != spec.shape[1:] or not np.can_cast(
            header.dtype, np.dtype(spec.dtype), "same_kind"
        ):
            raise Refusal(
                "data",
                "wrong_shape",
                f"{spec.name!r} in {field} is {header.dtype.name} {list(header.shape)}; "
                f"the model takes {spec.dtype} {['n', *spec.shape[1:]]}.",
                "Save it as the model takes it, one example a row.",
            )
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
    arrays = archives.load(path, field, wanted)
    rows: Rows = {
        spec.name: np.ascontiguousarray(arrays[spec.name][:most], dtype=np.dtype(spec.dtype))
        for spec in inputs
    }
    for name, array in rows.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Refusal(
                "data",
                "not_finite",
                f"{name!r} in {field} holds NaN or infinity.",
                "Send examples as the model sees them in use.",
            )
    return rows


def count(rows: Rows) -> int:
    """Return the number of rows."""
    return len(next(iter(rows.values())))

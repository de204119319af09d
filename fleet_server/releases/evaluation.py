"""Labelled rows for the gates of quality, and the training framework's own outputs.

Decides what the file ``evaluation`` holds: the model's inputs, ``label``, and any number of columns
``slice:NAME`` with a code a row; and that golden examples may come with ``output:NAME``. What the
figures on them have to be is decided by the gates.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleet_contract.manifest import TensorSpec
from fleet_server.releases import archives, examples, limits
from fleet_server.releases.examples import Rows
from fleet_server.releases.metadata import WORD_PATTERN
from fleet_server.releases.states import OutputKind, Refusal

FIELD = "evaluation"
LABEL = "label"
SLICE = "slice:"
OUTPUT = "output:"


@dataclass(frozen=True, slots=True)
class Labelled:
    """Evaluation rows: the model's inputs, one label a row, and slice columns by name."""

    inputs: Rows
    labels: NDArray[np.generic]
    slices: Rows


def read(
    path: Path, inputs: Sequence[TensorSpec], output: TensorSpec, kind: OutputKind
) -> Labelled:
    """Return the evaluation rows of an upload.

    Args:
        path: of the npz file.
        inputs: of the model.
        output: its first, which the labels are for.
        kind: how that is to be read.

    Raises:
        Refusal: if rows, labels or slices do not fit.
    """
    if any(spec.name == LABEL for spec in inputs):
        raise _refuse(
            "label_is_an_input",
            f"The model has an input named {LABEL!r}, so no array can hold the labels.",
            "Rename the input when you export the model.",
        )
    rows = examples.read_rows(
        path,
        FIELD,
        inputs,
        least=limits.LEAST_EVALUATION_ROWS,
        most=limits.EVALUATION_ROWS,
        aside=(LABEL, SLICE),
    )
    headers = archives.inspect(path, FIELD)
    columns = [name for name in headers if name.startswith(SLICE) and name not in rows]
    if LABEL not in headers or len(columns) > limits.SLICE_COLUMNS:
        raise _refuse(
            "no_labels",
            f"{FIELD} has no array {LABEL!r}, or more than {limits.SLICE_COLUMNS} of slices.",
            f"Add one label a row: numpy.savez(file, {inputs[0].name}=rows, {LABEL}=labels).",
        )
    rows_sent = headers[inputs[0].name].shape[0]
    if any(headers[name].shape[:1] != (rows_sent,) for name in (LABEL, *columns)):
        raise _refuse(
            "wrong_rows",
            f"An array of labels or slices in {FIELD} has not {rows_sent} rows.",
            "Send one label, and one code of each slice, a row.",
        )
    found = archives.load(path, FIELD, [LABEL, *columns], rows=examples.count(rows))
    labels = found[LABEL]
    if kind is OutputKind.VALUES:
        _check_values(labels, output)
    else:
        _check_classes(labels, output)
    slices = {name.removeprefix(SLICE): found[name] for name in columns}
    values = 0
    for name, codes in slices.items():
        named = re.match(WORD_PATTERN, name)
        if not named or codes.ndim != 1 or codes.dtype.kind not in "biu":
            raise _refuse(
                "wrong_slices",
                f"The slice {name[:80]!r} is no column of whole numbers, or has no plain name.",
                "Number its values, one code a row, and name it in letters and digits.",
            )
        values += len(np.unique(codes))
        if values > limits.SLICES:
            raise Refusal(
                "data",
                "too_many_slices",
                f"Up to {name[:80]!r} the slices have {values} different codes.",
                "Send columns that part the rows into few large slices.",
                figure=values,
                bound=limits.SLICES,
            )
    return Labelled(rows, labels, slices)


def read_reference(path: Path, outputs: Sequence[TensorSpec], rows: int) -> Rows | None:
    """Return the training framework's outputs on the golden rows, None if none were sent.

    Args:
        path: of the golden npz file.
        outputs: of the model.
        rows: how many golden rows are used.

    Raises:
        Refusal: ``wrong_reference`` if one is for no output, or of another shape.
    """
    headers = archives.inspect(path, "golden")
    names = [name for name in headers if name.startswith(OUTPUT)]
    if not names:
        return None
    specs = {OUTPUT + spec.name: spec for spec in outputs}
    for name in names:
        spec, header = specs.get(name), headers[name]
        fits = spec is not None and [None, *header.shape[1:]] == spec.shape and header.shape
        if not fits or header.shape[0] < rows:
            raise _refuse(
                "wrong_reference",
                f"{name[:80]!r} in golden is {list(header.shape)}; the outputs are "
                f"{', '.join(f'{s.name} {s.shape[1:]}' for s in outputs)[:200]} on {rows} rows.",
                f"Name it {OUTPUT}NAME after an output, one row a golden row.",
            )
    found = archives.load(path, "golden", names, rows=rows)
    reference = {name.removeprefix(OUTPUT): array for name, array in found.items()}
    if not all(np.isfinite(array).all() for array in reference.values()):
        raise _refuse("not_finite", "A reference output holds NaN or infinity.", "Look at it.")
    return reference


def _check_classes(labels: NDArray[np.generic], output: TensorSpec) -> None:
    classes = output.shape[1] if len(output.shape) == 2 and output.shape[1] else 0
    whole = labels.dtype.kind in "biu" or bool((labels == np.floor(labels.astype(float))).all())
    if labels.ndim != 1 or not whole or labels.min() < 0 or labels.max() >= classes:
        raise _refuse(
            "wrong_labels",
            f"The labels in {FIELD} are no numbers of classes from 0 to {classes - 1}.",
            "Send the number of the right class's column, one a row.",
        )


def _check_values(labels: NDArray[np.generic], output: TensorSpec) -> None:
    sizes = [size or 1 for size in output.shape[1:]]
    if int(np.prod(labels.shape[1:])) != int(np.prod(sizes)) or not np.isfinite(labels).all():
        raise _refuse(
            "wrong_labels",
            f"The labels in {FIELD} are {list(labels.shape)}; the output is {['n', *sizes]}.",
            "Send the right values in the output's shape, and no NaN.",
        )


def _refuse(code: str, detail: str, advice: str) -> Refusal:
    return Refusal("data", code, detail, advice)

"""From a model's tensors to the values of its features.

Device and server call the same code, so that a baseline made at staging and a sketch made on a
device mean the same. Decides how a tensor is reduced; binning is in the sketches.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from fleet_contract.errors import Reason, Refused
from fleet_contract.features import FeatureSet, Reduction, Source

Tensors = Mapping[str, NDArray[np.generic]]
Table = NDArray[np.float64]


def _top_class(rows: Table) -> Table:
    # argmax is the same for logits and probabilities; rows with a NaN have no winner.
    return np.where(np.isnan(rows).any(axis=1), -1.0, rows.argmax(axis=1))


_SUMMARIES: dict[Reduction, Callable[[Table], Table]] = {
    Reduction.MEAN: lambda rows: np.asarray(rows.mean(axis=1)),
    Reduction.DEVIATION: lambda rows: np.asarray(rows.std(axis=1)),
    Reduction.MINIMUM: lambda rows: np.asarray(rows.min(axis=1)),
    Reduction.MAXIMUM: lambda rows: np.asarray(rows.max(axis=1)),
    Reduction.TOP_CLASS: _top_class,
}


def extract_numeric(features: FeatureSet, tensors: Tensors) -> Table:
    """Return the numeric features of a batch.

    Args:
        features: the schema's side that the tensors belong to.
        tensors: name → array whose first axis is the batch.

    Returns:
        float64 of shape [rows, numeric features].

    Raises:
        Refused: ``malformed`` if a tensor is missing or has not the shape that its feature needs.
    """
    scores: dict[tuple[str, bool], Table] = {}
    columns = [_values(feature.source, tensors, scores) for feature in features.numeric]
    if not columns:
        return np.empty((_rows(tensors), 0))
    return np.column_stack(columns)


def extract_categorical(features: FeatureSet, tensors: Tensors) -> NDArray[np.int64]:
    """Return the categorical features of a batch as indices; anything not an index becomes -1.

    Returns:
        int64 of shape [rows, categorical features].

    Raises:
        Refused: ``malformed`` if a tensor is missing or has not the shape that its feature needs.
    """
    scores: dict[tuple[str, bool], Table] = {}
    columns = [_values(feature.source, tensors, scores) for feature in features.categorical]
    if not columns:
        return np.empty((_rows(tensors), 0), dtype=np.int64)
    table = np.column_stack(columns)
    sane = np.isfinite(table) & (np.abs(table) < 2**31)
    return np.where(sane, table, -1.0).astype(np.int64)


def _values(source: Source, tensors: Tensors, scores: dict[tuple[str, bool], Table]) -> Table:
    tensor = tensors.get(source.tensor)
    if tensor is None:
        raise Refused(Reason.MALFORMED, f"there is no tensor {source.tensor!r}")
    if tensor.ndim == 0 or tensor.size == 0:
        raise Refused(Reason.MALFORMED, f"tensor {source.tensor!r} has no rows")
    try:
        rows: Table = np.asarray(tensor, dtype=np.float64).reshape(tensor.shape[0], -1)
    except (TypeError, ValueError) as error:
        raise Refused(Reason.MALFORMED, f"tensor {source.tensor!r} holds no numbers") from error
    if source.reduction is Reduction.COLUMN:
        if source.column >= rows.shape[1]:
            raise Refused(
                Reason.MALFORMED, f"tensor {source.tensor!r} has no column {source.column}"
            )
        return rows[:, source.column].copy()
    if source.reduction in _SUMMARIES:
        return _SUMMARIES[source.reduction](rows)
    key = (source.tensor, source.logits)
    if key not in scores:
        scores[key] = _softmax(rows) if source.logits else rows
    probabilities = scores[key]
    if source.reduction is Reduction.ENTROPY:
        # NaN must stay NaN, a probability of 0 adds nothing.
        logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
        entropy: Table = -(probabilities * logs).sum(axis=1)
        return entropy
    if source.reduction is Reduction.TOP_PROBABILITY:
        return _SUMMARIES[Reduction.MAXIMUM](probabilities)
    if probabilities.shape[1] < 2:
        raise Refused(Reason.MALFORMED, f"tensor {source.tensor!r} has a single class")
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    margin: Table = first - second
    return margin


def _softmax(rows: Table) -> Table:
    with np.errstate(invalid="ignore"):  # inf - inf: the row becomes NaN and is counted as such
        shifted = np.exp(rows - rows.max(axis=1, keepdims=True))
    normal: Table = shifted / shifted.sum(axis=1, keepdims=True)
    return normal


def _rows(tensors: Tensors) -> int:
    return min((len(tensor) for tensor in tensors.values() if tensor.ndim), default=0)

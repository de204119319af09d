"""From a model's tensors to the values of its features.

Device and server call the same code, so that a baseline made at staging and a sketch made on a
device mean the same. Decides how a tensor is reduced; binning is in the sketches.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet_contract.errors import Reason, Refused
from fleet_contract.features import FeatureSet, Reduction, Source

Tensors = Mapping[str, NDArray[np.generic]]
Table = NDArray[np.float64]

_BLOCK_ELEMENTS = 16_384
"""Elements that are converted to float64 at a time: 128 KiB stay in the cache and in memory that is
already there, where a copy of a whole image costs more in page faults than in arithmetic."""


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
    reader = _Reader(tensors)
    columns = [reader.values(feature.source) for feature in features.numeric]
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
    reader = _Reader(tensors)
    columns = [reader.values(feature.source) for feature in features.categorical]
    if not columns:
        return np.empty((_rows(tensors), 0), dtype=np.int64)
    table = np.column_stack(columns)
    sane = np.isfinite(table) & (np.abs(table) < 2**31)
    return np.where(sane, table, -1.0).astype(np.int64)


class _Reader:
    """Reduces the tensors of one batch; what several features share is computed once, since an
    image has a hundred thousand elements and a handful of features.
    """

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._tables: dict[str, Table] = {}
        self._moments_of: dict[str, tuple[Table, Table]] = {}
        self._scores: dict[tuple[str, bool], Table] = {}

    def values(self, source: Source) -> Table:
        """Return a value per row."""
        name = source.tensor
        match source.reduction:
            case Reduction.COLUMN:
                rows = self._rows(name)
                if source.column >= rows.shape[1]:
                    raise Refused(
                        Reason.MALFORMED, f"tensor {name!r} has no column {source.column}"
                    )
                return _as_table(rows[:, source.column], name)
            case Reduction.MEAN:
                return self._moments(name)[0]
            case Reduction.DEVIATION:
                return self._moments(name)[1]
            # Comparisons give the same in the tensor's own type, without a converted copy of it.
            case Reduction.MINIMUM:
                return _as_table(self._ordered(name).min(axis=1), name)
            case Reduction.MAXIMUM:
                return _as_table(self._ordered(name).max(axis=1), name)
            case Reduction.TOP_CLASS:
                # argmax is the same for logits and probabilities; a row with a NaN has no winner.
                rows = self._ordered(name)
                return np.where(np.isnan(rows).any(axis=1), -1.0, rows.argmax(axis=1))
            case Reduction.TOP_PROBABILITY:
                return np.asarray(self._probabilities(source).max(axis=1))
            case Reduction.ENTROPY:
                # NaN must stay NaN, a probability of 0 adds nothing.
                probabilities = self._probabilities(source)
                logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
                return np.asarray(-(probabilities * logs).sum(axis=1))
            case Reduction.MARGIN:
                probabilities = self._probabilities(source)
                if probabilities.shape[1] < 2:
                    raise Refused(Reason.MALFORMED, f"tensor {name!r} has a single class")
                second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
                return np.asarray(first - second)

    def _rows(self, name: str) -> NDArray[Any]:
        """Return the tensor as [rows, elements] in its own type."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise Refused(Reason.MALFORMED, f"there is no tensor {name!r}")
        if tensor.ndim == 0 or tensor.size == 0:
            raise Refused(Reason.MALFORMED, f"tensor {name!r} has no rows")
        return tensor.reshape(tensor.shape[0], -1)

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            self._tables[name] = _as_table(self._rows(name), name)
        return self._tables[name]

    def _ordered(self, name: str) -> NDArray[Any]:
        rows = self._rows(name)
        return rows if rows.dtype.kind in "iuf" else self._table(name)

    def _moments(self, name: str) -> tuple[Table, Table]:
        """Return the mean and the standard deviation of each row."""
        if name not in self._moments_of:
            rows = self._rows(name)
            height = max(1, _BLOCK_ELEMENTS // rows.shape[1])
            bands = [
                _band_moments(rows[top : top + height], name) for top in range(0, len(rows), height)
            ]
            means, deviations = zip(*bands, strict=True)
            self._moments_of[name] = np.concatenate(means), np.concatenate(deviations)
        return self._moments_of[name]

    def _probabilities(self, source: Source) -> Table:
        key = (source.tensor, source.logits)
        if key not in self._scores:
            table = self._table(source.tensor)
            self._scores[key] = _softmax(table) if source.logits else table
        return self._scores[key]


def _band_moments(rows: NDArray[Any], name: str) -> tuple[Table, Table]:
    """Return mean and standard deviation, block by block: each block's own moments, joined as Chan,
    Golub and LeVeque do. A row is always cut at the same columns, so that its figures do not
    depend on the batch that it is in.
    """
    width = rows.shape[1]
    sizes, means, squares = [], [], []
    for left in range(0, width, _BLOCK_ELEMENTS):
        block = _as_table(rows[:, left : left + _BLOCK_ELEMENTS], name)
        sizes.append(block.shape[1])
        means.append(block.sum(axis=1) / block.shape[1])
        distance = block - means[-1][:, None]
        np.multiply(distance, distance, out=distance)
        squares.append(distance.sum(axis=1))
    if len(sizes) == 1:
        return means[0], np.asarray(np.sqrt(squares[0] / width))
    weights, parts = np.array(sizes)[:, None], np.stack(means)
    mean = (weights * parts).sum(axis=0) / width
    spread = np.stack(squares).sum(axis=0) + (weights * (parts - mean) ** 2).sum(axis=0)
    return mean, np.asarray(np.sqrt(spread / width))


def _as_table(values: NDArray[Any], name: str) -> Table:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise Refused(Reason.MALFORMED, f"tensor {name!r} holds no numbers") from error


def _softmax(rows: Table) -> Table:
    with np.errstate(invalid="ignore"):  # inf - inf: the row becomes NaN and is counted as such
        shifted = np.exp(rows - rows.max(axis=1, keepdims=True))
    normal: Table = shifted / shifted.sum(axis=1, keepdims=True)
    return normal


def _rows(tensors: Tensors) -> int:
    return min((len(tensor) for tensor in tensors.values() if tensor.ndim), default=0)

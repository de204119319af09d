"""The sketches of one side of a model together: all of its numeric and categorical features."""

from functools import reduce
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleet_contract.errors import Reason, Refused, SketchMismatch
from fleet_contract.extraction import Tensors, extract_categorical, extract_numeric
from fleet_contract.features import FeatureSet
from fleet_contract.sketches import categorical, numeric
from fleet_contract.sketches.categorical import CategoricalBank, CategoricalSketch
from fleet_contract.sketches.numeric import NumericBank, NumericSketch


class FeatureSketches(msgspec.Struct, frozen=True, array_like=True):
    """One sketch a feature, in the order of the feature set."""

    numeric: list[NumericSketch]
    categorical: list[CategoricalSketch]


def check(sketches: FeatureSketches, features: FeatureSet) -> None:
    """Check sketches from a peer against the schema they claim to follow.

    Raises:
        Refused: ``malformed`` if they are not of it.
    """
    if len(sketches.numeric) != len(features.numeric) or len(sketches.categorical) != len(
        features.categorical
    ):
        raise Refused(Reason.MALFORMED, "the sketches are of another feature schema")
    for sketch in sketches.numeric:
        numeric.check(sketch)
    for counts, feature in zip(sketches.categorical, features.categorical, strict=True):
        categorical.check(counts, feature)


def merge(left: FeatureSketches, right: FeatureSketches) -> FeatureSketches:
    """Return the sketches of both together.

    Raises:
        SketchMismatch: if they are of different schemas.
    """
    if (len(left.numeric), len(left.categorical)) != (len(right.numeric), len(right.categorical)):
        raise SketchMismatch("sketches of different feature schemas")
    return FeatureSketches(
        [numeric.merge(a, b) for a, b in zip(left.numeric, right.numeric, strict=True)],
        [categorical.merge(a, b) for a, b in zip(left.categorical, right.categorical, strict=True)],
    )


def empty(features: FeatureSet) -> FeatureSketches:
    """Return the sketches of nothing."""
    return FeatureSketches(
        [numeric.empty() for _ in features.numeric],
        [
            CategoricalSketch([0] * (len(feature.vocabulary) + 1))
            for feature in features.categorical
        ],
    )


def merge_all(parts: list[FeatureSketches], features: FeatureSet) -> FeatureSketches:
    """Return the sketches of all parts together."""
    return reduce(merge, parts, empty(features))


class FeatureValues(NamedTuple):
    """What the features of one side are in one batch, row by row."""

    numbers: NDArray[np.float64]
    indices: NDArray[np.int64]


class FeatureBank:
    """Accumulates the sketches of one side of a model; not thread-safe."""

    def __init__(self, features: FeatureSet) -> None:
        self._features = features
        self._numeric = NumericBank(features.numeric)
        self._categorical = CategoricalBank(features.categorical)

    def update(self, tensors: Tensors) -> None:
        """Count a batch of tensors, name → array whose first axis is the batch.

        Raises:
            Refused: ``malformed`` if they are not what the features are made from.
        """
        self.count(self.read(tensors))

    def read(self, tensors: Tensors) -> FeatureValues:
        """Return the features' values of a batch, to be counted later; changes nothing.

        Raises:
            Refused: ``malformed`` if the tensors are not what the features are made from.
        """
        # Infinities are counted as such; numpy need not warn of them, least of all where an
        # application turns warnings into errors.
        with np.errstate(all="ignore"):
            values = FeatureValues(
                extract_numeric(self._features, tensors),
                extract_categorical(self._features, tensors),
            )
        if len(values.numbers) != len(values.indices):
            raise Refused(Reason.MALFORMED, "tensors of one call have different numbers of rows")
        return values

    def count(self, values: FeatureValues) -> None:
        """Count values that :meth:`read` returned, or several of them joined along the rows.

        Raises:
            Refused: ``malformed`` if they are of other features, ``too_large`` if a sketch would
                hold too many rows.
        """
        with np.errstate(all="ignore"):
            self._numeric.update(values.numbers)
        self._categorical.update(values.indices)

    def sketches(self) -> FeatureSketches:
        """Return what was counted since the last :meth:`clear`."""
        return FeatureSketches(self._numeric.sketches(), self._categorical.sketches())

    def clear(self) -> None:
        """Forget everything counted so far."""
        self._numeric.clear()
        self._categorical.clear()

"""The feature schema: what is measured of a model's inputs and outputs, and on which scales.

Edges, grids and vocabularies belong to the schema and not to a release, so that the sketches of
two releases with one schema can be merged and compared. How a tensor becomes a feature's values
is in :mod:`fleet_contract.extraction`; how values become counts is in
:mod:`fleet_contract.sketches`.
"""

import hashlib
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet_contract import codec, limits
from fleet_contract.names import FeatureName

INNER_EDGES = 31
"""Inner edges of a numeric feature: 32 bins, the outer two of which are open."""

EDGE_QUANTILES = (
    *(0.001, 0.005, 0.01, 0.025),
    *(round(0.05 + 0.9 * step / 22, 6) for step in range(23)),
    *(0.975, 0.99, 0.995, 0.999),
)
"""The quantiles of the baseline at which a numeric feature's inner edges lie: dense where the
mass is, and with tails fine enough to see a change of the extremes."""


class Reduction(StrEnum):
    """How the rows of a tensor become one value a row.

    ``COLUMN`` takes one column. ``MEAN``, ``DEVIATION``, ``MINIMUM`` and ``MAXIMUM`` are taken over
    all of a row's elements (images, audio, embeddings). The others read a row as class scores:
    the winning class, its probability, the entropy in nats, the distance to the second.
    """

    COLUMN = "column"
    MEAN = "mean"
    DEVIATION = "deviation"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    TOP_CLASS = "top_class"
    TOP_PROBABILITY = "top_probability"
    ENTROPY = "entropy"
    MARGIN = "margin"


class Source(msgspec.Struct, frozen=True):
    """Where a feature's values come from.

    ``column`` is read by ``COLUMN`` only. ``logits`` says that class scores are logits, to be put
    through a softmax before they are read as probabilities.
    """

    tensor: Annotated[str, Meta(max_length=200)]
    reduction: Reduction
    column: Annotated[int, Meta(ge=0)] = 0
    logits: bool = False


class NumericFeature(msgspec.Struct, frozen=True):
    """A number a row. Sums are kept as integers in steps of ``2**-grid_bits``."""

    name: FeatureName
    source: Source
    grid_bits: Annotated[int, Meta(ge=-40, le=40)]
    edges: Annotated[list[float], Meta(min_length=INNER_EDGES, max_length=INNER_EDGES)]


class CategoricalFeature(msgspec.Struct, frozen=True):
    """A category a row: the value's index in the vocabulary; anything else counts as OTHER."""

    name: FeatureName
    source: Source
    vocabulary: Annotated[list[str], Meta(min_length=1, max_length=limits.VOCABULARY)]


class FeatureSet(msgspec.Struct, frozen=True):
    """The features of one side of a model, in the order in which sketches hold them."""

    numeric: Annotated[list[NumericFeature], Meta(max_length=limits.FEATURES)] = []
    categorical: Annotated[list[CategoricalFeature], Meta(max_length=limits.FEATURES)] = []

    def names(self) -> list[str]:
        """Return the names, the numeric features first."""
        return [item.name for item in self.numeric] + [item.name for item in self.categorical]


class FeatureSchema(msgspec.Struct, frozen=True):
    """What is measured of a model, inputs and outputs."""

    inputs: FeatureSet
    outputs: FeatureSet

    def digest(self) -> str:
        """Return the SHA-256 of the schema's canonical JSON: equal digests, mergeable sketches."""
        return hashlib.sha256(codec.encode_json(self)).hexdigest()

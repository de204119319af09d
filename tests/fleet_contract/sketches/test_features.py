"""Guards that all sketches of one side merge exactly, and are checked against their schema."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet_contract import codec
from fleet_contract.errors import Refused, SketchMismatch
from fleet_contract.features import FeatureSchema, FeatureSet
from fleet_contract.sketches import categorical, features
from fleet_contract.sketches.categorical import CategoricalBank, CategoricalSketch
from fleet_contract.sketches.features import FeatureBank, FeatureSketches

scores = st.lists(
    st.lists(st.floats(-50, 50) | st.just(float("nan")), min_size=3, max_size=3), max_size=8
).map(lambda rows: np.array(rows, dtype=np.float32).reshape(len(rows), 3))


def of(side: FeatureSet, *tables: NDArray[np.float32]) -> FeatureSketches:
    bank = FeatureBank(side)
    for table in tables:
        if len(table):
            bank.update({"scores": table})
    return bank.sketches()


@given(one=scores, two=scores, three=scores)
def test_merging_is_exact_in_any_order(
    schema: FeatureSchema,
    one: NDArray[np.float32],
    two: NDArray[np.float32],
    three: NDArray[np.float32],
) -> None:
    side = schema.outputs
    parts = [of(side, table) for table in (one, two, three)]
    whole = codec.encode_msgpack(of(side, np.concatenate([one, two, three])))
    assert codec.encode_msgpack(features.merge_all(parts, side)) == whole
    assert codec.encode_msgpack(features.merge_all(parts[::-1], side)) == whole
    assert features.merge(parts[0], features.empty(side)) == parts[0]
    left = features.merge(features.merge(parts[0], parts[1]), parts[2])
    assert left == features.merge(parts[0], features.merge(parts[1], parts[2]))
    features.check(left, side)


@given(indices=st.lists(st.integers(-(2**62), 2**62) | st.integers(-1, 4), max_size=20))
def test_categories_outside_the_vocabulary_are_other(
    schema: FeatureSchema, indices: list[int]
) -> None:
    bank = CategoricalBank(schema.outputs.categorical)
    bank.update(np.array(indices, dtype=np.int64).reshape(-1, 1))
    [sketch] = bank.sketches()
    known = [indices.count(index) for index in range(3)]
    assert sketch.counts == [*known, len(indices) - sum(known)]
    categorical.check(sketch, schema.outputs.categorical[0])


@pytest.mark.parametrize(
    "counts", [[], [1, 2, 3], [1, 2, 3, 4, 5], [0, 0, 0, -1], [1 << 23, 0, 0, 0]]
)
def test_forged_categories_are_refused(schema: FeatureSchema, counts: list[int]) -> None:
    with pytest.raises(Refused, match="malformed"):
        categorical.check(CategoricalSketch(counts), schema.outputs.categorical[0])


def test_vocabularies_of_other_sizes_are_not_merged() -> None:
    with pytest.raises(SketchMismatch):
        categorical.merge(CategoricalSketch([1]), CategoricalSketch([1, 2]))


def test_sketches_of_another_schema_are_refused(schema: FeatureSchema) -> None:
    with pytest.raises(Refused, match="another feature schema"):
        features.check(features.empty(schema.outputs), schema.inputs)
    with pytest.raises(SketchMismatch):
        features.merge(features.empty(schema.outputs), features.empty(schema.inputs))


def test_refused_batch_leaves_no_trace(schema: FeatureSchema) -> None:
    bank = FeatureBank(schema.outputs)
    bank.update({"scores": np.eye(3)})
    before = copy.deepcopy(bank.sketches())
    for tensors in ({}, {"scores": np.eye(3)[:0]}, {"scores": np.array(["a"])}):
        with pytest.raises(Refused):
            bank.update(tensors)
    assert bank.sketches() == before


def test_schema_digest_depends_on_every_edge(schema: FeatureSchema) -> None:
    import msgspec

    first = schema.inputs.numeric[0]
    moved = msgspec.structs.replace(first, edges=[first.edges[0] - 1, *first.edges[1:]])
    inputs = msgspec.structs.replace(schema.inputs, numeric=[moved, *schema.inputs.numeric[1:]])
    assert FeatureSchema(inputs, schema.outputs).digest() != schema.digest()
    assert FeatureSchema(schema.inputs, schema.outputs).digest() == schema.digest()

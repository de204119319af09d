"""Guards that a feature means the same in a baseline and on a device: against a naive reference."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet_contract.errors import Refused
from fleet_contract.extraction import extract_categorical, extract_numeric
from fleet_contract.features import (
    INNER_EDGES,
    CategoricalFeature,
    FeatureSet,
    NumericFeature,
    Reduction,
    Source,
)

EDGES = [float(i) for i in range(INNER_EDGES)]
elements = st.floats(-100, 100, width=32)
tables = st.integers(2, 5).flatmap(
    lambda width: st.lists(
        st.lists(elements, min_size=width, max_size=width), min_size=1, max_size=6
    ).map(lambda rows: np.array(rows, dtype=np.float32))
)


def extract(tensor: NDArray[np.generic], reduction: Reduction, **source: object) -> list[float]:
    made = Source("x", reduction, **source)  # type: ignore[arg-type]
    side = FeatureSet(numeric=[NumericFeature("f", made, 0, EDGES)])
    column: list[float] = extract_numeric(side, {"x": tensor})[:, 0].tolist()
    return column


NEAR = 1e-9


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(x - max(row)) for x in row]
    return [power / math.fsum(powers) for power in powers]


@given(table=tables)
def test_reductions_are_those_of_a_naive_reference(table: NDArray[np.float32]) -> None:
    rows = [[float(x) for x in row] for row in table]
    assert extract(table, Reduction.MINIMUM) == [min(row) for row in rows]
    assert extract(table, Reduction.MAXIMUM) == [max(row) for row in rows]
    assert extract(table, Reduction.COLUMN, column=1) == [row[1] for row in rows]
    assert extract(table, Reduction.TOP_CLASS) == [row.index(max(row)) for row in rows]
    mean = [statistics.fmean(row) for row in rows]
    assert extract(table, Reduction.MEAN) == pytest.approx(mean, rel=NEAR, abs=NEAR)
    deviation = [statistics.pstdev(row) for row in rows]
    assert extract(table, Reduction.DEVIATION) == pytest.approx(deviation, rel=1e-6, abs=1e-6)
    shares = [softmax(row) for row in rows]
    top = [max(row) for row in shares]
    found = extract(table, Reduction.TOP_PROBABILITY, logits=True)
    assert found == pytest.approx(top, rel=NEAR, abs=NEAR)
    entropy = [-sum(p * math.log(p) for p in row if p > 0) for row in shares]
    found = extract(table, Reduction.ENTROPY, logits=True)
    assert found == pytest.approx(entropy, rel=NEAR, abs=NEAR)
    margin = [sorted(row)[-1] - sorted(row)[-2] for row in shares]
    found = extract(table, Reduction.MARGIN, logits=True)
    assert found == pytest.approx(margin, rel=NEAR, abs=NEAR)


@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.parametrize("width", [3, 20_000])
def test_figures_of_a_row_do_not_depend_on_its_batch(reduction: Reduction, width: int) -> None:
    table = np.random.default_rng(1).random((5, width)).astype(np.float32)
    whole = extract(table, reduction)
    assert whole == [extract(table[i : i + 1], reduction)[0] for i in range(5)]


@pytest.mark.parametrize("width", [12_287, 12_288, 12_289, 40_000])
def test_moments_of_a_large_tensor(width: int) -> None:
    table = np.random.default_rng(width).normal(1_000, 1, (2, width)).astype(np.float32)
    wide = table.astype(np.float64)
    assert extract(table, Reduction.MEAN) == pytest.approx(wide.mean(axis=1).tolist(), rel=1e-12)
    found = extract(table, Reduction.DEVIATION)
    assert found == pytest.approx(wide.std(axis=1).tolist(), rel=1e-9)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int64", "float16", "float32"])
def test_every_type_of_number(dtype: str) -> None:
    table = np.array([[0, 1], [1, 0]]).astype(dtype)
    assert extract(table, Reduction.MEAN) == [0.5, 0.5]
    assert extract(table, Reduction.MAXIMUM) == [1, 1]
    assert extract(table, Reduction.TOP_CLASS) == [1, 0]


@pytest.mark.parametrize("reduction", list(Reduction))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_not_a_number_stays_visible(reduction: Reduction) -> None:
    table = np.array([[math.nan, 1.0], [1.0, 2.0]])
    spoilt, good = extract(table, reduction, logits=True)
    assert math.isnan(spoilt) or spoilt == -1
    assert math.isfinite(good)


def test_images_are_summarised_over_all_of_their_elements() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    assert extract(image, Reduction.MEAN) == [5.5, 17.5]
    assert extract(image, Reduction.COLUMN, column=11) == [11, 23]


@pytest.mark.parametrize(
    ("tensor", "reduction", "column"),
    [
        (np.float32(1), Reduction.MEAN, 0),
        (np.zeros((0, 3)), Reduction.MEAN, 0),
        (np.zeros((3, 0)), Reduction.MEAN, 0),
        (np.zeros((3, 2)), Reduction.COLUMN, 2),
        (np.zeros((3, 1)), Reduction.MARGIN, 0),
        (np.array([["a", "b"]]), Reduction.MEAN, 0),
        (np.array([[object()]]), Reduction.MAXIMUM, 0),
    ],
    ids=range(7),
)
def test_other_tensors_are_refused(
    tensor: NDArray[np.generic], reduction: Reduction, column: int
) -> None:
    with pytest.raises(Refused, match="malformed"):
        extract(np.asarray(tensor), reduction, column=column)
    with pytest.raises(Refused, match="no tensor"):
        extract_numeric(
            FeatureSet(numeric=[NumericFeature("f", Source("y", reduction), 0, EDGES)]),
            {"x": np.asarray(tensor)},
        )


def test_categories_are_whole_indices_and_the_rest_is_minus_one() -> None:
    source = Source("x", Reduction.COLUMN)
    side = FeatureSet(categorical=[CategoricalFeature("c", source, ["a", "b"])])
    table = np.array([[0.0], [1.0], [7.0], [math.nan], [math.inf], [1e300], [-3.0]])
    assert extract_categorical(side, {"x": table})[:, 0].tolist() == [0, 1, 7, -1, -1, -1, -3]
    assert extract_categorical(FeatureSet(), {"x": table}).shape == (7, 0)
    assert extract_numeric(FeatureSet(), {"x": table}).shape == (7, 0)

"""Large rows are reduced in blocks; that changes neither the figures nor what they depend on."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_contract.extraction import extract_numeric
from fleet_contract.features import (
    INNER_EDGES,
    FeatureSet,
    NumericFeature,
    Reduction,
    Source,
)

EDGES = [float(edge) for edge in range(INNER_EDGES)]
FEATURES = FeatureSet(
    [
        NumericFeature(reduction.value, Source("x", reduction), 16, EDGES)
        for reduction in (
            Reduction.MEAN,
            Reduction.DEVIATION,
            Reduction.MINIMUM,
            Reduction.MAXIMUM,
        )
    ]
)
WIDTHS = [1, 7, 16_383, 16_384, 16_385, 50_000]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int32", "bool"])
def test_figures_are_those_of_the_whole_row(width: int, dtype: str) -> None:
    rng = np.random.default_rng(width)
    tensor = (rng.normal(size=(3, width)) * 40 + 100).astype(dtype)
    rows = tensor.astype(np.float64)
    expected = np.column_stack(
        [rows.mean(axis=1), rows.std(axis=1), rows.min(axis=1), rows.max(axis=1)]
    )
    np.testing.assert_allclose(
        extract_numeric(FEATURES, {"x": tensor}), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_gives_the_same_bits_alone_and_in_a_batch(width: int) -> None:
    tensor = np.random.default_rng(width).normal(size=(5, width)).astype(np.float32)
    together = extract_numeric(FEATURES, {"x": tensor})
    alone = np.concatenate([extract_numeric(FEATURES, {"x": row[None]}) for row in tensor])
    assert together.tobytes() == alone.tobytes()


def test_small_spread_on_a_large_offset_is_not_lost() -> None:
    tensor = 1e6 + np.random.default_rng(0).normal(size=(1, 60_000))
    _, deviation, _, _ = extract_numeric(FEATURES, {"x": tensor})[0]
    assert deviation == pytest.approx(tensor.std(), rel=1e-9)

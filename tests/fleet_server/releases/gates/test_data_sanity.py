"""Guards from calibration and drift that rest on rows that are no sample of anything."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fleet_server.releases.gates import data_sanity
from fleet_server.releases.limits import LEAST_BASELINE_ROWS, PRODUCTION_BASELINE_ROWS

ROWS = np.random.default_rng(2).normal(size=(1_000, 4)).astype(np.float32)

IMAGES = np.random.default_rng(3).random((200, 1, 8, 8))


def _with(column: int, value: float) -> np.ndarray:
    rows = ROWS.copy()
    rows[:, column] = value
    return rows


def _far(share: float) -> np.ndarray:
    rows = ROWS.copy()
    rows[: int(len(rows) * share)] += 100
    return rows


@pytest.mark.parametrize(
    ("spoil", "name", "figure", "bound"),
    [
        ({"baseline": ROWS[:20]}, "rows", 20, LEAST_BASELINE_ROWS),
        ({"baseline": _with(1, np.nan)}, "missing", 0.25, 0),
        ({"calibration": _with(2, np.nan)}, "missing", 0.25, 0),
        ({"baseline": _with(3, 0.5)}, "column 3", 1, 0),
        ({"calibration": np.zeros((100, 1, 8, 8)), "baseline": IMAGES}, "never change", 1, 0),
        ({"calibration": _far(0.2)}, "calibration outside baseline", 0.2, 0.05),
        ({"baseline": _far(0.2)}, "baseline outside calibration", 0.2, 0.05),
    ],
)
def test_rows_that_are_no_sample(
    given: Callable[..., Any], refusal: Any, spoil: Any, name: str, figure: float, bound: float
) -> None:
    rows: dict[str, Any] = {"calibration": {"x": ROWS}, "baseline": {"x": ROWS}}
    problem = refusal(given(**rows | {field: {"x": array} for field, array in spoil.items()}))
    assert (problem.gate, problem.code) == ("data-sanity", "data_sanity_failed")
    assert (problem.figure, problem.bound) == (pytest.approx(figure), bound)
    assert name in problem.detail


def test_column_of_other_numbers_beside_a_wide_one(given: Any, refusal: Any) -> None:
    """Degrees in one column, pascals in another: degrees in kelvin are in the range of pascals."""
    weather = ROWS * [5, 500, 1, 1] + [20, 101_325, 0, 0]
    kelvin = weather + np.array([273, 0, 0, 0])
    problem = refusal(given(calibration={"x": weather}, baseline={"x": kelvin}))
    assert (problem.figure, problem.bound) == (1.0, data_sanity.MOST_OUTSIDE)
    assert "x column 0" in problem.detail


@pytest.mark.parametrize("seed", range(20))
def test_few_rows_of_the_same_kind_pass(given: Any, results: Any, seed: int) -> None:
    drawn = np.random.default_rng(seed).normal(size=(1_016, 32))
    found = results(given(calibration={"x": drawn[:16]}, baseline={"x": drawn[16:]}))
    assert found["baseline_outside"].bound == found["calibration_outside"].bound == 14 / 16
    found = results(given(calibration={"x": drawn[:500]}, baseline={"x": drawn[500:]}))
    assert found["calibration_outside"].bound == data_sanity.MOST_OUTSIDE


def test_state_that_is_the_first_of_every_sequence(given: Any, results: Any, refusal: Any) -> None:
    still = np.zeros((1_000, 4), np.float32)
    sent: dict[str, Any] = {
        "calibration": {"x": ROWS, "memory": ROWS},
        "baseline": {"x": ROWS, "memory": still},
    }
    found = results(given(states={"memory"}, **sent))
    assert found["baseline_constant_inputs"].figure == 0
    assert found["calibration_outside"].figure == 0
    results(given(states={"memory"}, **sent | {"calibration": sent["baseline"]}))
    assert "memory column 0" in refusal(given(**sent)).detail, "an input has to vary"
    far = {"calibration": {"x": ROWS, "memory": ROWS + 100}, "baseline": sent["calibration"]}
    assert "outside" in refusal(given(states={"memory"}, **far)).detail, "a state that moves, too"


def test_model_of_nothing_but_states(given: Any, results: Any) -> None:
    still = {"memory": np.zeros((1_000, 4), np.float32)}
    results(given(states={"memory"}, calibration=still, baseline=still))


def test_too_few_rows_for_production_are_told_at_staging(given: Any, results: Any) -> None:
    few = {"x": ROWS[:300]}
    found = results(given(calibration=few, baseline=few))["baseline_rows"]
    assert found.passed and str(PRODUCTION_BASELINE_ROWS) in found.note


def test_image_with_a_corner_that_is_always_black(given: Any, results: Any) -> None:
    images = np.random.default_rng(3).random((200, 1, 8, 8), dtype=np.float32)
    images[:, :, 0, 0] = 0
    results(given(calibration={"x": images}, baseline={"x": images}))

"""Guards from a release that gains for many at the cost of a few."""

from typing import Any

import numpy as np
import pytest

from fleet_server.releases.gates import slices
from fleet_server.releases.gates.given import Evaluation
from fleet_server.releases.states import Metric

LABELS = np.arange(1_000) % 3
REGION = np.repeat([0, 1, 2], [800, 180, 20])


def _scores(wrong: np.ndarray) -> dict[str, np.ndarray]:
    return {"logits": np.eye(3, dtype=np.float32)[(LABELS + wrong) % 3]}


def _evaluated(now: np.ndarray, before: np.ndarray | None) -> Evaluation:
    production = None if before is None else _scores(before)
    return Evaluation(LABELS, {"region": REGION}, _scores(now), production, "there is none")


def _wrong(rows: slice) -> np.ndarray:
    wrong = np.zeros(1_000, int)
    wrong[rows] = 1
    return wrong


def test_better_in_all_and_worse_in_one_slice(given: Any, refusal: Any) -> None:
    before, now = _wrong(slice(0, 50)), _wrong(slice(800, 810))
    problem = refusal(given(evaluation=_evaluated(now, before)))
    assert (problem.gate, problem.code) == ("slices", "slices_failed")
    assert (problem.figure, problem.bound) == (pytest.approx(170 / 180), 1 - slices.MARGIN)
    assert "region=1" in problem.detail


def test_slice_of_few_rows_is_counted_and_not_judged(given: Any, results: Any) -> None:
    before, now = _wrong(slice(0, 50)), _wrong(slice(980, 990))
    found = results(given(evaluation=_evaluated(now, before)))
    assert found["slices of few rows"].figure == 1
    assert "accuracy of region=2" not in found
    assert found["accuracy of region=1"].figure == 1.0


def test_margin_of_a_slice(given: Any, results: Any) -> None:
    before, now = _wrong(slice(0, 50)), _wrong(slice(800, 810))
    results(given(evaluation=_evaluated(now, before), slice_margin=0.1))


def test_first_release_has_its_slices_measured(given: Any, results: Any) -> None:
    found = results(given(evaluation=_evaluated(_wrong(slice(0, 80)), None)))
    assert found["accuracy of region=0"].figure == pytest.approx(0.9)
    assert found["accuracy of region=0"].bound is None


def test_error_of_a_slice_that_grows(given: Any, refusal: Any) -> None:
    before = {"logits": np.ones((1_000, 1))}
    now = {"logits": np.where(REGION == 1, 1.06, 0.9)[:, None]}
    rows = Evaluation(np.zeros(1_000), {"region": REGION}, now, before)
    problem = refusal(given(evaluation=rows, metric=Metric.MAE, kind="values"))
    assert (problem.figure, problem.bound) == (pytest.approx(1.06), pytest.approx(1.05))

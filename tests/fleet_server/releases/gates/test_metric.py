"""Guards from a release that is worse than production on labelled rows."""

from typing import Any

import numpy as np
import pytest

from fleet_server.releases.gates import metric
from fleet_server.releases.gates.given import Evaluation
from fleet_server.releases.states import Metric

LABELS = np.arange(300) % 3


def _scores(wrong: int) -> dict[str, np.ndarray]:
    """Sure answers, of which the first so many are wrong."""
    answers = LABELS.copy()
    answers[:wrong] = (answers[:wrong] + 1) % 3
    return {"logits": np.eye(3, dtype=np.float32)[answers] * 5}


def _evaluated(wrong: int, before: int | None) -> Evaluation:
    production = None if before is None else _scores(before)
    return Evaluation(LABELS, {}, _scores(wrong), production, "there is none")


def test_first_release_is_only_measured(given: Any, results: Any) -> None:
    found = results(given(evaluation=_evaluated(30, None)))["accuracy"]
    assert (found.figure, found.bound) == (0.9, None)
    assert "there is none" in found.note


def test_as_good_as_production_passes(given: Any, results: Any) -> None:
    found = results(given(evaluation=_evaluated(30, 30)))["accuracy"]
    assert (found.figure, found.bound) == (0.9, 0.9)


def test_one_row_worse_than_production(given: Any, refusal: Any) -> None:
    problem = refusal(given(evaluation=_evaluated(31, 30)))
    assert (problem.gate, problem.code) == ("metric", "metric_failed")
    assert problem.figure < problem.bound == 0.9


def test_margin_that_was_asked_for(given: Any, refusal: Any, results: Any) -> None:
    results(given(evaluation=_evaluated(33, 30), metric_margin=-0.01))
    problem = refusal(given(evaluation=_evaluated(30, 30), metric_margin=0.01))
    assert problem.bound == pytest.approx(0.91)


def test_auc_that_gains_less_than_half_a_point(given: Any, refusal: Any, results: Any) -> None:
    rows = given(metric=Metric.AUC, evaluation=_evaluated(30, 30))
    problem = refusal(rows)
    assert problem.bound == pytest.approx(problem.figure + metric.AUC_MARGIN)
    results(given(metric=Metric.AUC, evaluation=_evaluated(20, 30)))


def test_auc_that_has_no_half_a_point_to_gain(given: Any, results: Any) -> None:
    found = results(given(metric=Metric.AUC, evaluation=_evaluated(0, 0)))["auc"]
    assert (found.figure, found.bound) == (1.0, 1.0)


def test_metric_that_says_nothing_of_labels_of_one_class(given: Any, refusal: Any) -> None:
    alike = Evaluation(np.zeros(300, int), {}, _scores(30), _scores(30))
    problem = refusal(given(metric=Metric.AUC, evaluation=alike))
    assert (problem.gate, problem.figure, problem.bound) == ("metric", 1, 2)
    assert "one class" in problem.detail


def test_error_that_grows(given: Any, refusal: Any, results: Any) -> None:
    right = np.zeros(300, np.float32)
    before = {"logits": np.full((300, 1), 1.0)}
    for figure, fails in ((1.1, True), (0.9, False)):
        rows = Evaluation(right, {}, {"logits": np.full((300, 1), figure)}, before)
        evidence = given(metric=Metric.RMSE, evaluation=rows, kind="values")
        if fails:
            problem = refusal(evidence)
            assert (problem.figure, problem.bound) == (pytest.approx(1.1), 1.0)
        else:
            results(evidence)


def test_override_is_written_down_with_its_figure(given: Any, results: Any) -> None:
    found = results(given(evaluation=_evaluated(60, 30)), {"metric": "the labels are old"})
    assert found["accuracy"].overridden == "the labels are old"
    assert not found["accuracy"].passed
    assert found["baseline_rows"].overridden == ""

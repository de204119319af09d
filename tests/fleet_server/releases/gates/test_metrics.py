"""Guards from figures that mean something else than their name says."""

import numpy as np
import pytest
from sklearn import metrics as reference

from fleet_server.releases.gates import metrics
from fleet_server.releases.states import Metric, OutputKind, Refusal

RANDOM = np.random.default_rng(3)
LABELS = RANDOM.integers(0, 4, 500)
# Coarse scores, as int8 models give: many rows are equal.
SCORES = np.round(np.eye(4)[LABELS] * 0.4 + RANDOM.normal(size=(500, 4)), 1)


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _measure(metric: Metric, kind: OutputKind = OutputKind.LOGITS) -> float | None:
    scores = SCORES if kind is OutputKind.LOGITS else _softmax(SCORES)
    return metrics.measure(metric, kind, scores, LABELS)


def test_figures_are_those_of_scikit_learn() -> None:
    winners = SCORES.argmax(axis=1)
    area = reference.roc_auc_score(LABELS, _softmax(SCORES), multi_class="ovr", average="macro")
    assert _measure(Metric.AUC) == pytest.approx(area)
    assert _measure(Metric.AUC, OutputKind.PROBABILITIES) == pytest.approx(area)
    assert _measure(Metric.ACCURACY) == reference.accuracy_score(LABELS, winners)
    assert _measure(Metric.F1) == pytest.approx(
        reference.f1_score(LABELS, winners, average="macro")
    )
    values, right = SCORES[:, :1], SCORES[:, 1]
    kind = OutputKind.VALUES
    assert metrics.measure(Metric.RMSE, kind, values, right) == pytest.approx(
        reference.root_mean_squared_error(right, values[:, 0])
    )
    assert metrics.measure(Metric.MAE, kind, values, right) == pytest.approx(
        reference.mean_absolute_error(right, values[:, 0])
    )


def test_auc_of_two_classes_is_that_of_the_second() -> None:
    labels, scores = LABELS % 2, np.round(_softmax(SCORES[:, :2]), 6)
    found = metrics.measure(Metric.AUC, OutputKind.PROBABILITIES, scores, labels)
    assert found == pytest.approx(reference.roc_auc_score(labels, scores[:, 1]))


def test_auc_of_rows_of_one_class_is_no_number() -> None:
    labels = np.zeros(500, int)
    assert metrics.measure(Metric.AUC, OutputKind.LOGITS, SCORES, labels) is None


@pytest.mark.parametrize(
    ("metric", "kind"), [(Metric.AUC, OutputKind.VALUES), (Metric.RMSE, OutputKind.LOGITS)]
)
def test_metric_that_says_nothing_about_the_output(metric: Metric, kind: OutputKind) -> None:
    with pytest.raises(Refusal) as caught:
        metrics.check_fit(metric, kind)
    assert caught.value.problem.code == "metric_does_not_fit"
    metrics.check_fit(metrics.default(kind), kind)


@pytest.mark.parametrize(("metric", "figure"), [(Metric.MAE, 1.5), (Metric.RMSE, 2.5**0.5)])
def test_errors_of_many_values_with_labels_in_another_type(metric: Metric, figure: float) -> None:
    output = np.zeros((2_000, 300), np.float32)
    output[::2], output[1::2] = 1, -2
    labels = np.zeros((2_000, 300, 1), np.int8)
    found = metrics.measure(metric, OutputKind.VALUES, output, labels)
    assert found == pytest.approx(figure)

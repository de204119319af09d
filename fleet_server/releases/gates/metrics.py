"""How good outputs are against labels: accuracy, AUC, F1, RMSE and MAE.

Decides how each is computed, which way is better, and for which outputs it makes sense. Which
figure is good enough is decided by the gates.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fleet_server.releases.pieces import pairs
from fleet_server.releases.states import Metric, OutputKind, Refusal

LOWER_IS_BETTER = frozenset({Metric.RMSE, Metric.MAE})
OF_CLASSES = frozenset({Metric.ACCURACY, Metric.AUC, Metric.F1})


def default(kind: OutputKind) -> Metric:
    """Return the metric of a model for which none was chosen."""
    return Metric.RMSE if kind is OutputKind.VALUES else Metric.ACCURACY


def check_fit(metric: Metric, kind: OutputKind) -> None:
    """Check that a metric can be computed for outputs of a kind.

    Raises:
        Refusal: ``metric_does_not_fit`` otherwise.
    """
    if (metric in OF_CLASSES) is (kind is OutputKind.VALUES):
        raise Refusal(
            "metric",
            "metric_does_not_fit",
            f"The metric {metric.value} says nothing about outputs of the kind {kind.value}.",
            "Choose accuracy, auc or f1 for classes, rmse or mae for values.",
        )


def measure(
    metric: Metric, kind: OutputKind, output: NDArray[np.generic], labels: NDArray[np.generic]
) -> float | None:
    """Return a metric on some rows.

    Args:
        metric: which; it has to fit the kind.
        kind: of the output: scores [rows, classes], or values.
        output: the model's first output.
        labels: one a row: the class's number, or the value.

    Returns:
        None where it is not defined: an AUC of rows that are all of one class.
    """
    if metric in LOWER_IS_BETTER:
        power = 1 if metric is Metric.MAE else 2
        total = sum(float((wrong**power).sum()) for wrong in _errors(output, labels))
        return float((total / output.size) ** (1 / power))
    scores = output.reshape(len(labels), -1)
    classes = labels.astype(np.int64)
    if metric is Metric.AUC:
        return _auc(_probabilities(scores.astype(np.float64), kind), classes)
    winners = scores.argmax(axis=1)
    if metric is Metric.F1:
        return _f1(winners, classes)
    return float((winners == classes).mean())


def gain(metric: Metric, candidate: float, production: float) -> float:
    """Return by how much the candidate is better; below zero it is worse."""
    return production - candidate if metric in LOWER_IS_BETTER else candidate - production


def _errors(
    output: NDArray[np.generic], labels: NDArray[np.generic]
) -> Iterator[NDArray[np.float64]]:
    """Yield how far values are from the right ones, some rows at a time: both may be large."""
    for found, right in pairs(output, labels):
        wide = [part.reshape(len(found), -1).astype(np.float64) for part in (found, right)]
        yield np.abs(wide[0] - wide[1])


def _probabilities(scores: NDArray[np.float64], kind: OutputKind) -> NDArray[np.float64]:
    if kind is not OutputKind.LOGITS:
        return scores
    # One class's logits are no ranking over rows: rows differ by a constant of their own.
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float64)


def _auc(scores: NDArray[np.float64], classes: NDArray[np.int64]) -> float | None:
    """The mean over the classes of one against the rest, from the ranks of the scores.

    The area under the ROC curve is the Mann-Whitney statistic over the number of pairs: Hanley and
    McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC) curve",
    Radiology 143 (1982). Equal scores share their ranks, so they count as half a pair.
    """
    areas = []
    for number in np.unique(classes):
        positive = classes == number
        positives, negatives = int(positive.sum()), int((~positive).sum())
        if negatives:
            ranks = _ranks(scores[:, number])
            pairs = ranks[positive].sum() - positives * (positives + 1) / 2
            areas.append(float(pairs) / (positives * negatives))
    return sum(areas) / len(areas) if areas else None


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, the mean of their ranks for equal values."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[places], dtype=np.float64)


def _f1(winners: NDArray[np.intp], classes: NDArray[np.int64]) -> float:
    """The mean over all classes that are a label or an answer."""
    found = []
    for number in np.union1d(winners, classes):
        right = int(((winners == number) & (classes == number)).sum())
        named, there = int((winners == number).sum()), int((classes == number).sum())
        found.append(2 * right / (named + there))
    return sum(found) / len(found)

"""Gate: on labelled rows, what ships is as good as production, by the metric of choice.

AUC has to gain half a point, any other metric must not lose. The first release is only measured.
"""

from fleet_server.releases.gates import metrics
from fleet_server.releases.gates.given import Given, Rows
from fleet_server.releases.states import GateResult, Metric

NAME = "metric"
ADVICE = (
    "Look at the rows that production answers better (--evaluation); train on more like them, "
    "or say how much may be lost: --metric-margin, or --override metric=REASON."
)
AUC_MARGIN = 0.005
_ROUNDING = 1e-9
"""Sums in another order are no loss."""


def judge(given: Given) -> list[GateResult]:
    """Return the metric of what ships, against production's on the same rows."""
    rows = given.evaluation
    if rows is None:
        return []
    metric = given.metric
    candidate = _measure(given, rows.outputs)
    production = None if rows.production is None else _measure(given, rows.production)
    if candidate is None:
        note = f"{metric.value} is not defined on these labels: they are all of one class."
        return [GateResult(NAME, "classes among the labels", 1, 2, False, note)]
    counted = f"{metric.value} is {candidate:.4f} on {len(rows.labels)} evaluation rows"
    if production is None:
        note = f"{counted}; not compared: {rows.why_not}."
        return [GateResult(NAME, metric.value, candidate, None, True, note)]
    bound = least(metric, production, given.metric_margin)
    passed = metrics.gain(metric, candidate, bound) >= -_ROUNDING
    side = "most" if metric in metrics.LOWER_IS_BETTER else "least"
    note = f"{counted}; production has {production:.4f}, so at {side} {bound:.4f} is needed."
    return [GateResult(NAME, metric.value, candidate, bound, passed, note)]


def default_margin(metric: Metric) -> float:
    """Return the least gain over production where none was set."""
    return AUC_MARGIN if metric is Metric.AUC else 0.0


def least(metric: Metric, production: float, margin: float | None) -> float:
    """Return the bound that follows from production's figure."""
    if metric in metrics.LOWER_IS_BETTER:
        return production - (margin or 0.0)
    if margin is not None:
        return production + margin
    # Who is above 0.99 cannot gain half a point: then half of what is missing to 1 is asked for.
    return production + min(default_margin(metric), (1 - production) / 2)


def _measure(given: Given, outputs: Rows) -> float | None:
    assert given.evaluation is not None
    first = outputs[given.outputs[0].name]
    return metrics.measure(given.metric, given.kind, first, given.evaluation.labels)

"""Gate: no slice of the evaluation rows loses more than its margin against production.

A slice is all rows with one code in one column ``slice:NAME``. Slices of few rows are counted, and
not judged: there a single row decides.
"""

import numpy as np

from fleet_server.releases.gates import metrics
from fleet_server.releases.gates.given import Given
from fleet_server.releases.states import GateResult

NAME = "slices"
ADVICE = (
    "Look at the rows of this slice; train on more like them, or say how much a slice may lose: "
    "--slice-margin, or --override slices=REASON."
)
LEAST_ROWS = 50
"""With fewer, one row is worth more than the margin."""
MARGIN = 0.02
"""What a slice may lose of a metric from 0 to 1: one row of the smallest slice that is judged."""
ERROR_SHARE = 0.05
"""By which share of production's error an error metric may grow."""
_ROUNDING = 1e-9


def judge(given: Given) -> list[GateResult]:
    """Return the metric of each slice that has enough rows."""
    rows = given.evaluation
    if rows is None:
        return []
    results = []
    output = given.outputs[0].name
    metric, few = given.metric, 0
    for column, codes in rows.slices.items():
        for code in np.unique(codes):
            chosen = codes == code
            count = int(chosen.sum())
            if count < LEAST_ROWS:
                few += 1
                continue
            labels = rows.labels[chosen]
            figure = metrics.measure(metric, given.kind, rows.outputs[output][chosen], labels)
            before = None
            if rows.production is not None:
                before = metrics.measure(
                    metric, given.kind, rows.production[output][chosen], labels
                )
            name = f"{metric.value} of {column}={code}"[:120]
            if figure is None or before is None:
                why = rows.why_not if rows.production is None else "all rows are of one class"
                note = f"{count} rows; not compared: {why}."
                results.append(GateResult(NAME, name, figure, None, True, note))
                continue
            bound = _bound(given, before)
            results.append(
                GateResult(
                    NAME,
                    name,
                    figure,
                    bound,
                    metrics.gain(metric, figure, bound) >= -_ROUNDING,
                    f"{metric.value} is {figure:.4f} on the {count} rows with {column}={code}; "
                    f"production has {before:.4f}, so {bound:.4f} is needed.",
                )
            )
    if few:
        note = f"Not judged: they have fewer than {LEAST_ROWS} rows."
        results.append(GateResult(NAME, "slices of few rows", few, None, True, note))
    return results


def _bound(given: Given, production: float) -> float:
    if given.metric in metrics.LOWER_IS_BETTER:
        margin = given.slice_margin
        return production + (ERROR_SHARE * production if margin is None else margin)
    return production - (MARGIN if given.slice_margin is None else given.slice_margin)

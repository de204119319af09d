"""Fills a model card with what staging knows of a release.

Decides what is worth telling: the worst rows, the confusion of classes, a picture of each feature.
It measures nothing; the outputs of both models on the golden rows are given.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fleet_contract.features import CategoricalFeature, FeatureSet, NumericFeature, Source
from fleet_contract.manifest import Manifest
from fleet_contract.sketches import numeric
from fleet_contract.sketches.categorical import CategoricalSketch
from fleet_contract.sketches.features import FeatureSketches
from fleet_contract.sketches.numeric import NumericSketch
from fleet_server.releases.card.content import (
    Comparison,
    FeatureLine,
    Needs,
    StepLine,
    WorstRow,
)
from fleet_server.releases.examples import Rows
from fleet_server.releases.parity import Parity
from fleet_server.releases.pieces import Array, pairs
from fleet_server.releases.states import GateResult, OutputKind, Step

WORST_ROWS = 5
CONFUSION_CLASSES = 16
"""More do not fit a table that one can read."""
_BINS = 24
_FEATURES = 64
"""Of one side of the model; the manifest lists all."""
_LABELS = 16


def compare(
    reference: Rows,
    shipped: Rows,
    parity: Parity,
    kind: OutputKind,
    classes: Sequence[str],
    *,
    states: Collection[str] = (),
) -> Comparison:
    """Return where the shipped model differs from the float one, row by row.

    Differences of ``states`` are not counted, unless there is no other output: they have units of
    their own, in which nobody who uses the model thinks.
    """
    rows = parity.rows
    gaps = np.zeros(rows)
    plain = {name: array for name, array in reference.items() if name not in states}
    for name, array in (plain or reference).items():
        gaps = np.maximum(gaps, _row_gaps(array, shipped[name]))
    first = next(iter(reference))
    winners: list[NDArray[np.intp]] = []
    labels: list[str] = []
    if kind is not OutputKind.VALUES:
        scores = [side[first].reshape(rows, -1) for side in (reference, shipped)]
        winners = [side.argmax(axis=1) for side in scores]
        width = scores[0].shape[1]
        labels = list(classes) if len(classes) == width else [str(n) for n in range(width)]
    same = winners[0] == winners[1] if winners else np.ones(rows, dtype=bool)
    order = np.lexsort((-gaps, same))[:WORST_ROWS]
    worst = [
        WorstRow(int(row), float(gaps[row]), *(labels[int(side[row])] for side in winners))
        for row in order
        if gaps[row] > 0
    ]
    confusion: list[list[int]] = []
    if 0 < len(labels) <= CONFUSION_CLASSES:
        table = np.zeros((len(labels), len(labels)), dtype=np.int64)
        np.add.at(table, (winners[0], winners[1]), 1)
        confusion = table.tolist()
    top = float(gaps.max(initial=0.0))
    counts = np.histogram(gaps, _BINS, (0.0, top))[0] if top > 0 else np.zeros(0, dtype=np.int64)
    return Comparison(
        rows=rows,
        agreement=parity.agreement,
        sqnr_db=round(parity.sqnr_db, 2),
        largest_difference=top,
        worst=worst,
        classes=labels if confusion else [],
        confusion=confusion,
        histogram=counts.tolist(),
    )


def _row_gaps(reference: Array, shipped: Array) -> NDArray[np.float64]:
    """Return each row's largest difference, a piece at a time: outputs may be large."""
    found = [
        np.abs(one.astype(np.float64) - two.astype(np.float64)).reshape(len(one), -1).max(axis=1)
        for one, two in pairs(reference, shipped)
    ]
    return np.concatenate(found)


def features(side: str, known: FeatureSet, sketches: FeatureSketches) -> list[FeatureLine]:
    """Return what one side of the model looked like on the baseline data."""
    names = zip(known.categorical, sketches.categorical, strict=True)
    numbers = zip(known.numeric, sketches.numeric, strict=True)
    found = [_categories(side, *item) for item in names]
    return (found + [_numbers(side, *item) for item in numbers])[:_FEATURES]


def gates(steps: Sequence[Step]) -> list[GateResult]:
    """Return what the gates judged, as the steps carry it.

    A step whose figures name a bound (``least_x`` beside ``x``) is read as a gate that passed.
    """
    found: list[GateResult] = []
    for step in steps:
        if step.gates:
            found += step.gates
            continue
        for name, bound in step.figures.items():
            figure = step.figures.get(name.removeprefix("least_"))
            if not name.startswith("least_"):
                continue
            if isinstance(figure, int | float) and isinstance(bound, int | float):
                short = name.removeprefix("least_")
                found.append(GateResult(step.name, short, figure, bound, figure >= bound))
    return found


def lines(steps: Sequence[Step]) -> list[StepLine]:
    """Return the steps without their tables, which a card holds elsewhere."""
    return [StepLine(step.name, step.took_ms, dict(step.figures)) for step in steps]


def needs(manifest: Manifest) -> Needs:
    """Return what a device must have for the main artifact of a release."""
    variant = manifest.variants[-1]
    asks = variant.requires
    tools: Mapping[str, str] = manifest.lineage.tools
    return Needs(
        variant.artifact.size_bytes,
        variant.precision,
        variant.runtime.value,
        asks.opset,
        asks.ir_version,
        list(asks.operators),
        asks.memory_bytes,
        dict(tools),
        asks.numpy,
    )


def _source(source: Source) -> str:
    if source.reduction.value == "column":
        return f"column {source.column} of {source.tensor}"
    return f"{source.reduction.value.replace('_', ' ')} of {source.tensor}"


def _numbers(side: str, feature: NumericFeature, sketch: NumericSketch) -> FeatureLine:
    low, high = sketch.minimum, sketch.maximum
    shares: list[float] = []
    if low is not None and high is not None and high > low and np.isfinite(high - low):
        # Bins of the sketch hold equal masses; equal widths show the shape.
        inner = np.clip(np.array(feature.edges), low, high)
        below = np.cumsum(sketch.bins) / sketch.finite
        at = np.concatenate([[low], inner, [high]])
        share = np.concatenate([[0.0], below])
        # Of edges at one place the last counts: all of the mass there lies below it.
        kept = np.append(np.diff(at) > 0, True)
        grid = np.interp(np.linspace(low, high, _BINS + 1), at[kept], share[kept])
        grid[0] = 0.0
        shares = [round(float(item), 6) for item in np.diff(grid)]
    return FeatureLine(
        side,
        feature.name,
        _source(feature.source),
        sketch.rows,
        sketch.rows - sketch.finite,
        low,
        high,
        numeric.mean(sketch, feature),
        [],
        shares,
    )


def _categories(side: str, feature: CategoricalFeature, sketch: CategoricalSketch) -> FeatureLine:
    counts = list(sketch.counts)
    total = max(1, sum(counts))
    named = list(zip([*feature.vocabulary, "other"], counts, strict=True))
    if len(named) > _LABELS:
        named = sorted(named, key=lambda item: -item[1])[:_LABELS]
    elif counts[-1] == 0:
        named = named[:-1]
    return FeatureLine(
        side,
        feature.name,
        _source(feature.source),
        sum(counts),
        0,
        labels=[name for name, _ in named],
        shares=[round(count / total, 6) for _, count in named],
    )

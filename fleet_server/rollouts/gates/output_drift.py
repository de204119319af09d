"""Output drift: does the candidate stray further from its baseline than the stable release does?

A new model's outputs may differ from the old one's, so each is held against its *own* baseline;
and inputs may drift for everybody, so the candidate's shift is held against that of the concurrent
control. A device's histogram of one output is embedded by square roots, where the distance to the
baseline's is Hellinger's (1909): 0 for equal, 1 for disjoint. Every device counts the same,
and all are thinned to about the same number of rows, since fewer rows look more different.

The statistic is max over outputs of (shift of the mean candidate device - shift of the mean
control device). Its distribution under "labels do not matter" comes from exchanging the devices'
labels: all of them where there are few, else at least 20/alpha draws from a seeded generator
(Fisher 1935; Pitman 1937; the maximum over outputs as in Westfall and Young 1993). It fails if
p ≤ alpha *and* the statistic exceeds what labels alone give (the median) by the plan's margin.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet_contract.features import CategoricalFeature, FeatureSet, NumericFeature
from fleet_contract.sketches.features import FeatureSketches
from fleet_server.rollouts.gates.result import (
    Figure,
    GateResult,
    Verdict,
    arms,
    seed_of,
    too_few,
)
from fleet_server.rollouts.plan import Guardrail
from fleet_server.rollouts.snapshot import DeviceRecord, ReleaseFacts, Snapshot

Table = NDArray[np.float64]

LABELLINGS = 40_000
"""Up to this many labellings all are tried: 3 of 60 devices have 34,220."""

DRAWS_PER_ALPHA = 20
CELLS = 4_000_000
"""Cells of labels in memory at a time: 32 MB."""

SAME = 1e-9
"""Labellings within this of the observed one count as equal: sums differ in their last bits."""

LEAST_CONTROL = 3


@dataclass(frozen=True, slots=True)
class Output:
    """One output in both releases: its name, its place among each one's histograms, its width."""

    name: str
    candidate: int
    control: int
    width: int
    edges: tuple[float, ...]


def judge(snapshot: Snapshot, alpha: float, look: int) -> GateResult:
    """Judge the outputs of the candidate against those of the stable release."""
    assert snapshot.stage is not None
    stable = snapshot.rollout.stable
    candidate = snapshot.rollout.candidate
    rows = snapshot.plan.guardrails.minimum_rows
    arm, control = (_with_rows(devices, rows) for devices in arms(snapshot))
    need = max(
        1, min(snapshot.plan.stages[snapshot.stage.index].minimum_devices, len(arms(snapshot)[0]))
    )
    if stable is None or len(arm) < need or len(control) < LEAST_CONTROL:
        return too_few(
            Guardrail.OUTPUT_DRIFT,
            alpha,
            len(arm),
            len(control),
            f"too few devices have {rows} outputs",
        )
    outputs = _common(candidate.outputs, stable.outputs)
    if not outputs:
        return _nothing_to_compare(alpha, len(arm), len(control))
    seed = seed_of(snapshot, Guardrail.OUTPUT_DRIFT, look)
    generator = np.random.default_rng(seed)
    residuals = _residuals(arm, control, outputs, candidate, stable, generator)
    shifts_candidate, shifts_control = _shifts(residuals, len(arm), outputs)
    observed = float((shifts_candidate - shifts_control).max())
    null, exact = _null(residuals, len(arm), outputs, alpha, generator)
    hits = int((null >= observed - SAME).sum())
    p = hits / len(null) if exact else (hits + 1) / (len(null) + 1)
    excess = observed - float(np.median(null))
    margin = snapshot.plan.guardrails.drift_margin
    worst = int((shifts_candidate - shifts_control).argmax())
    drifted = p <= alpha and excess > margin
    return GateResult(
        guardrail=Guardrail.OUTPUT_DRIFT,
        verdict=Verdict.FAIL if drifted else Verdict.PASS,
        statistic=excess,
        bound=margin,
        evidence=p,
        evidence_kind="p",
        alpha=alpha,
        n_candidate=len(arm),
        n_control=len(control),
        detail=(
            f"Output {outputs[worst].name} lies {shifts_candidate[worst]:.3f} from the candidate's "
            f"baseline on {len(arm)} devices, and {shifts_control[worst]:.3f} from the stable "
            f"release's on {len(control)} (Hellinger distance); beyond chance {excess:+.3f}, "
            f"tolerated {margin:.3f} (p = {p:.2g}, alpha = {alpha:.2g})."
        ),
        seed=seed,
        figures=_figures(
            arm,
            control,
            outputs[worst],
            candidate,
            stable,
            {
                "feature": outputs[worst].name,
                "shift_candidate": float(shifts_candidate[worst]),
                "shift_control": float(shifts_control[worst]),
                "features": [output.name for output in outputs],
                "shifts_candidate": [round(float(x), 6) for x in shifts_candidate],
                "shifts_control": [round(float(x), 6) for x in shifts_control],
                "labellings": len(null),
                "method": "exact" if exact else "drawn",
            },
        ),
    )


def histograms(sketches: FeatureSketches) -> list[NDArray[np.int64]]:
    """Return the counts of each feature, numeric first; what is no number is a bin of its own."""
    numeric = [
        np.array([*item.bins, item.rows - item.finite], dtype=np.int64) for item in sketches.numeric
    ]
    return numeric + [np.array(item.counts, dtype=np.int64) for item in sketches.categorical]


def _with_rows(devices: list[DeviceRecord], rows: int) -> list[DeviceRecord]:
    return [
        device
        for device in devices
        if device.outputs is not None
        and all(counts.sum() >= rows for counts in histograms(device.outputs))
    ]


def _common(candidate: FeatureSet, control: FeatureSet) -> list[Output]:
    """Return the outputs that both releases have, in the same form."""
    there = {item.name: (place, item) for place, item in enumerate(_features(control))}
    found = []
    for place, item in enumerate(_features(candidate)):
        other, twin = there.get(item.name, (0, None))
        if isinstance(item, NumericFeature) and isinstance(twin, NumericFeature):
            found.append(Output(item.name, place, other, len(item.edges) + 2, tuple(item.edges)))
        elif (
            isinstance(item, CategoricalFeature)
            and isinstance(twin, CategoricalFeature)
            and item.vocabulary == twin.vocabulary
        ):
            found.append(Output(item.name, place, other, len(item.vocabulary) + 1, ()))
    return found


def _features(features: FeatureSet) -> list[NumericFeature | CategoricalFeature]:
    return [*features.numeric, *features.categorical]


def _residuals(
    arm: list[DeviceRecord],
    control: list[DeviceRecord],
    outputs: list[Output],
    candidate: ReleaseFacts,
    stable: ReleaseFacts,
    generator: np.random.Generator,
) -> Table:
    """Return [devices, bins of all outputs]: √(own histogram) - √(own release's baseline)."""
    rows = [_rows(device, output.candidate) for device in arm for output in outputs]
    # Most devices of the arm have at least this; a straggler does not cost all others their rows.
    common_rows = int(np.quantile(rows, 0.25))
    parts = []
    for devices, release, in_arm in ((arm, candidate, True), (control, stable, False)):
        base = histograms(release.baseline)
        for device in devices:
            assert device.outputs is not None
            own = histograms(device.outputs)
            pieces = []
            for output in outputs:
                place = output.candidate if in_arm else output.control
                counts = _thin(own[place], common_rows, generator)
                pieces.append(np.sqrt(_share(counts)) - np.sqrt(_share(base[place])))
            parts.append(np.concatenate(pieces))
    return np.array(parts)


def _rows(device: DeviceRecord, place: int) -> int:
    assert device.outputs is not None
    return int(histograms(device.outputs)[place].sum())


def _thin(
    counts: NDArray[np.int64], rows: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    if counts.sum() <= rows:
        return counts
    thinned: NDArray[np.int64] = generator.multivariate_hypergeometric(
        counts, rows, method="marginals"
    )
    return thinned


def _share(counts: NDArray[np.int64]) -> Table:
    share: Table = counts / max(int(counts.sum()), 1)
    return share


def _shifts(residuals: Table, k: int, outputs: list[Output]) -> tuple[Table, Table]:
    """Return the shift of each output, of the first k devices and of the others."""
    return (
        _distances(residuals[:k].mean(axis=0)[None, :], outputs)[0],
        _distances(residuals[k:].mean(axis=0)[None, :], outputs)[0],
    )


def _distances(means: Table, outputs: list[Output]) -> Table:
    """Return Hellinger distances of shape [labellings, outputs]."""
    starts = np.cumsum([0] + [output.width for output in outputs])[:-1]
    distances: Table = np.sqrt(np.add.reduceat(means * means, starts, axis=1) / 2)
    return distances


def _null(
    residuals: Table, k: int, outputs: list[Output], alpha: float, generator: np.random.Generator
) -> tuple[Table, bool]:
    """Return the statistic under other labels, and whether these are all there are."""
    n = len(residuals)
    total = residuals.sum(axis=0)
    exact = math.comb(n, k) <= LABELLINGS
    draws = math.comb(n, k) if exact else math.ceil(DRAWS_PER_ALPHA / alpha)
    chunk = max(1, CELLS // n)
    every = itertools.combinations(range(n), k) if exact else None
    found = []
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        labels = np.zeros((size, n))
        if every is not None:
            chosen = np.array(list(itertools.islice(every, size)))
        else:
            chosen = np.argpartition(generator.random((size, n)), k - 1, axis=1)[:, :k]
        np.put_along_axis(labels, chosen, 1.0, axis=1)
        sums = labels @ residuals
        shifts = _distances(sums / k, outputs) - _distances((total - sums) / (n - k), outputs)
        found.append(shifts.max(axis=1))
    return np.concatenate(found), exact


def _figures(
    arm: list[DeviceRecord],
    control: list[DeviceRecord],
    output: Output,
    candidate: ReleaseFacts,
    stable: ReleaseFacts,
    figures: dict[str, Figure],
) -> dict[str, Figure]:
    """Return the figures with the distributions of the worst output, for people to look at."""

    def mean(devices: list[DeviceRecord], place: int) -> list[float]:
        shares = [_share(histograms(d.outputs)[place]) for d in devices if d.outputs is not None]
        return [round(float(x), 6) for x in np.mean(shares, axis=0)]

    def base(release: ReleaseFacts, place: int) -> list[float]:
        return [round(float(x), 6) for x in _share(histograms(release.baseline)[place])]

    categories = next(
        (x.vocabulary for x in candidate.outputs.categorical if x.name == output.name), []
    )
    return {
        **figures,
        "edges": list(output.edges),
        "categories": list(categories),
        "distribution_candidate": mean(arm, output.candidate),
        "distribution_control": mean(control, output.control),
        "baseline_candidate": base(candidate, output.candidate),
        "baseline_control": base(stable, output.control),
    }


def _nothing_to_compare(alpha: float, n_candidate: int, n_control: int) -> GateResult:
    return GateResult(
        guardrail=Guardrail.OUTPUT_DRIFT,
        verdict=Verdict.PASS,
        statistic=0.0,
        bound=0.0,
        evidence=1.0,
        evidence_kind="p",
        alpha=alpha,
        n_candidate=n_candidate,
        n_control=n_control,
        detail="The two releases have no output feature in common that could be compared.",
    )

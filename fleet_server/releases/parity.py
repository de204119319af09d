"""Is the quantised model still the model? Compares both on the golden rows, and decides.

Agreement of the winning class is what a user notices; the signal-to-noise ratio catches outputs
that no class can speak for. Bit equality is never asked for.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet_contract.manifest import TensorSpec
from fleet_server.releases.examples import Rows
from fleet_server.releases.states import OutputKind, Refusal

LEAST_SQNR_DB = 10.0
"""Noise of a third of the signal; good int8 models have 20 dB and more."""
MOST_SQNR_DB = 200.0
"""Reported where nothing differs."""
DEVICE_AGREEMENT = 0.95
"""For a device's self-test: of 32 golden rows, one may come out as another class."""
DEVICE_STEPS = 16
"""For a device's self-test: how many of 255 steps of an output's range it may be off. Runtimes
and instruction sets differ by up to 11."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the quantised model is from the float one. ``agreement`` is None without classes."""

    rows: int
    agreement: float | None
    sqnr_db: float
    largest_difference: float


def compare(
    reference: Rows, candidate: Rows, outputs: list[TensorSpec], kind: OutputKind
) -> Parity:
    """Compare the outputs of two models on the same rows.

    Returns:
        The agreement on the first output, and the worst figures over all outputs.
    """
    first = outputs[0].name
    agreement = None
    if kind is not OutputKind.VALUES:
        winners = _winners(reference[first]), _winners(candidate[first])
        agreement = float((winners[0] == winners[1]).mean())
    pairs = [
        (reference[spec.name].astype(np.float64), candidate[spec.name].astype(np.float64))
        for spec in outputs
    ]
    return Parity(
        rows=len(reference[first]),
        agreement=agreement,
        sqnr_db=min(_sqnr_db(a, b) for a, b in pairs),
        largest_difference=max(float(np.abs(a - b).max()) for a, b in pairs),
    )


def check(parity: Parity, least_agreement: float, rows: str = "golden rows") -> None:
    """Decide whether the quantised model may stand for the float one; ``rows`` are for messages.

    Raises:
        Refusal: ``parity_failed`` with the figure and its bound.
    """
    advice = (
        "Send calibration data that covers what the model sees in use, and at least some hundred "
        "rows of it; a model with very uneven weights may need training with quantisation in mind."
    )
    if parity.agreement is not None and parity.agreement < least_agreement:
        raise Refusal(
            "parity",
            "parity_failed",
            f"The int8 model names the float model's class on {parity.agreement:.1%} of "
            f"{parity.rows} {rows}; at least {least_agreement:.1%} are needed.",
            advice,
            figure=parity.agreement,
            bound=least_agreement,
        )
    if parity.sqnr_db < LEAST_SQNR_DB:
        raise Refusal(
            "parity",
            "parity_failed",
            f"The int8 model's outputs have a signal-to-noise ratio of {parity.sqnr_db:.1f} dB on "
            f"{parity.rows} {rows}; at least {LEAST_SQNR_DB:.0f} dB are needed.",
            advice,
            figure=parity.sqnr_db,
            bound=LEAST_SQNR_DB,
        )


def device_tolerance(outputs: Rows) -> float:
    """Return by how much a device's runtime may be off on the golden rows, in output units."""
    spans = [float(array.max()) - float(array.min()) for array in outputs.values()]
    return DEVICE_STEPS / 255 * max(spans)


def _winners(scores: NDArray[np.generic]) -> NDArray[np.intp]:
    winners: NDArray[np.intp] = scores.reshape(len(scores), -1).argmax(axis=1)
    return winners


def _sqnr_db(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    noise = float(((reference - candidate) ** 2).sum())
    signal = float((reference**2).sum())
    if noise == 0:
        return MOST_SQNR_DB
    if signal == 0:
        return 0.0
    return min(MOST_SQNR_DB, 10 * math.log10(signal / noise))

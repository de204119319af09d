"""Is the quantised model still the model? Compares both on the golden rows, and decides.

Agreement of the winning class is what a user notices; the signal-to-noise ratio catches outputs
that no class can speak for. Neither sees a model that gives the same answer to everything, where
one class is rare or all values lie far from zero: for that, what varies over the rows is compared.
Bit equality is never asked for.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet_contract.manifest import TensorSpec
from fleet_server.releases.examples import Rows
from fleet_server.releases.pieces import Array, pairs, pieces
from fleet_server.releases.states import OutputKind, Refusal

LEAST_SQNR_DB = 10.0
"""Noise of a third of the signal; good int8 models have 20 dB and more."""
MOST_SQNR_DB = 200.0
"""Reported where nothing differs."""
LEAST_FOLLOWED = 0.5
"""Of how the float model's outputs vary: who always gives the mean follows nothing of it, and good
int8 models nearly all."""
_STILL = 1e-3
"""An output that varies by less than this share of its size says nothing by it."""
DEVICE_AGREEMENT = 0.95
"""For a device's self-test: of 32 golden rows, one may come out as another class."""
DEVICE_STEPS = 16
"""For a device's self-test: how many of 255 steps of an output's range it may be off. Runtimes
and instruction sets differ by up to 11."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the quantised model is from the float one.

    ``agreement`` is None without classes. ``followed`` is the share of the variation over the rows
    that the quantised model follows (a coefficient of determination, at most 1); None where the
    float model's answers do not vary.
    """

    rows: int
    agreement: float | None
    sqnr_db: float
    largest_difference: float
    followed: float | None = None


def compare(
    reference: Rows, candidate: Rows, outputs: list[TensorSpec], kind: OutputKind
) -> Parity:
    """Compare the outputs of two models on the same rows.

    Returns:
        The agreement on the first output, and the worst figures over all outputs.
    """
    first = outputs[0].name
    agreement, alike = None, False
    if kind is not OutputKind.VALUES:
        winners = _winners(reference[first]), _winners(candidate[first])
        agreement = float((winners[0] == winners[1]).mean())
        # Then how sure it is of them is all that varies, and nobody asks for that.
        alike = bool((winners[0] == winners[0][0]).all())
    found = [_Distance.of(reference[spec.name], candidate[spec.name]) for spec in outputs]
    followed = [item.followed() for item in (found[1:] if alike else found)]
    return Parity(
        rows=len(reference[first]),
        agreement=agreement,
        sqnr_db=min(item.sqnr_db() for item in found),
        largest_difference=max(item.largest for item in found),
        followed=min((share for share in followed if share is not None), default=None),
    )


@dataclass(frozen=True, slots=True)
class _Distance:
    """Sums of squares over an output: of the float model's, of their distance from their own means
    over the rows, and of what is between the two models. They are in a unit, a power of 2, in which
    no number is above 2, so that no square overflows; ``largest`` is in the output's own.
    """

    signal: float
    variation: float
    noise: float
    largest: float

    @classmethod
    def of(cls, reference: Array, candidate: Array) -> "_Distance":
        unit = math.ldexp(1, math.frexp(max(map(_magnitude, (reference, candidate))))[1] - 1)
        mean = np.zeros(reference.shape[1:])
        for part in pieces(reference):
            mean += _wide(part, unit).sum(axis=0) / len(reference)
        signal = variation = noise = largest = 0.0
        for ours, theirs in pairs(reference, candidate):
            one, two = _wide(ours, unit), _wide(theirs, unit)
            apart = np.abs(one - two)
            signal += float((one**2).sum())
            variation += float(((one - mean) ** 2).sum())
            noise += float((apart**2).sum())
            largest = max(largest, float(apart.max()))
        return cls(signal, variation, noise, min(largest * unit, sys.float_info.max))

    def sqnr_db(self) -> float:
        if self.noise == 0:
            return MOST_SQNR_DB
        if self.signal == 0:
            return 0.0
        return min(MOST_SQNR_DB, 10 * math.log10(self.signal / self.noise))

    def followed(self) -> float | None:
        if self.variation <= _STILL**2 * self.signal:
            return None
        return 1 - self.noise / self.variation


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
    if parity.followed is not None and parity.followed < LEAST_FOLLOWED:
        raise Refusal(
            "parity",
            "parity_failed",
            f"The int8 model follows {max(0.0, parity.followed):.0%} of what varies in the float "
            f"model's outputs over {parity.rows} {rows}; at least {LEAST_FOLLOWED:.0%} are needed.",
            advice,
            figure=parity.followed,
            bound=LEAST_FOLLOWED,
        )


def differences(reference: Mapping[str, Array], candidate: Mapping[str, Array]) -> dict[str, float]:
    """Return the largest difference of each output."""
    return {name: _Distance.of(array, candidate[name]).largest for name, array in reference.items()}


def device_tolerance(output: Array) -> float:
    """Return by how much a device's runtime may be off on the golden rows, in the output's unit.

    It is a share of the output's range, and of its size where it is the same for all rows.
    """
    most = _magnitude(output)
    half = float(output.max()) / 2 - float(output.min()) / 2  # all of it may be no number
    span = most / 2 if half < _STILL * most else half
    return min(DEVICE_STEPS / 255 * 2 * span, sys.float_info.max) or _STILL


def _winners(scores: Array) -> NDArray[np.intp]:
    winners: NDArray[np.intp] = scores.reshape(len(scores), -1).argmax(axis=1)
    return winners


def _magnitude(array: Array) -> float:
    return max(float(array.max()), -float(array.min()))


def _wide(array: Array, unit: float) -> NDArray[np.float64]:
    return array.astype(np.float64) / unit

"""Gate: the float model says what the training framework said, if its outputs were sent along.

Catches an export that is not the trained model. It guards parity, so nobody can override it.
"""

import numpy as np

from fleet_server.releases.gates.given import Given
from fleet_server.releases.pieces import pairs
from fleet_server.releases.states import GateResult

NAME = "reference"
ADVICE = (
    "Compare the exported model with the training framework on these rows: the same preprocessing, "
    "evaluation mode, and the very weights that were trained."
)
MOST_DIFFERENCE = 1e-3
"""Of an output's span: PyTorch's ONNX exporter verifies with a relative tolerance of 1e-3."""


def judge(given: Given) -> list[GateResult]:
    """Return the largest difference of each reference output, as a share of its span."""
    if given.reference is None:
        return []
    results = []
    for name, expected in given.reference.items():
        span = float(expected.max()) - float(expected.min()) or 1.0
        # Both may be large.
        apart = (
            float(np.abs(one.astype(np.float64) - two.astype(np.float64)).max())
            for one, two in pairs(expected, given.float_outputs[name])
        )
        difference = max(apart) / span
        results.append(
            GateResult(
                NAME,
                f"difference of {name}"[:120],
                difference,
                MOST_DIFFERENCE,
                difference <= MOST_DIFFERENCE,
                f"The float model's {name!r} is up to {difference:.3g} of its span from the "
                f"reference output, on {len(expected)} golden rows.",
            )
        )
    return results

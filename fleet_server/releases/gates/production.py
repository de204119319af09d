"""What a release must have shown before it leaves staging for production.

Judges what the gates noted when it was staged; nothing is measured anew. Staging takes less: who
tries something out has no thousand rows yet.
"""

from collections.abc import Sequence

from fleet_server.releases.gates import data_sanity
from fleet_server.releases.limits import PRODUCTION_BASELINE_ROWS
from fleet_server.releases.states import GateResult


def judge(noted: Sequence[GateResult]) -> list[GateResult]:
    """Return the figures with the bounds that production has.

    Args:
        noted: what the gates found when the release was staged.
    """
    rows = next((item.figure for item in noted if item.name == data_sanity.ROWS), None) or 0.0
    return [
        GateResult(
            data_sanity.NAME,
            data_sanity.ROWS,
            rows,
            PRODUCTION_BASELINE_ROWS,
            rows >= PRODUCTION_BASELINE_ROWS,
            f"its baseline has {rows:.0f} rows, and production needs {PRODUCTION_BASELINE_ROWS}.",
        )
    ]

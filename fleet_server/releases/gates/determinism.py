"""Gate: the same row gives the same answer: twice, in two sessions, alone and among others.

Devices test themselves with golden vectors; a model that answers at random would fail there at
random. It guards that self-test, so nobody can override it.
"""

from fleet_server.releases.gates.given import Given
from fleet_server.releases.states import GateResult

NAME = "determinism"
ADVICE = (
    "Export the model for inference: no dropout, no random operators, no state kept between calls, "
    "and nothing that mixes the rows of a batch."
)
SAME = 1e-6
"""Of an output's span: one thread and one library leave nothing but rounding."""
ALONE = 1 / 16
"""Of an output's span: kernels differ by batch size, and dynamic int8 takes its scale from the
whole batch; as far apart as a device may be from its golden vectors."""


def judge(given: Given) -> list[GateResult]:
    """Return the largest differences, as shares of the outputs' spans."""
    found = given.exercise
    return [
        GateResult(
            NAME,
            name,
            difference,
            bound,
            difference <= bound,
            f"{what} differ by up to {difference:.3g} of an output's span on {found.rows} rows; "
            f"at most {bound:.3g} is allowed.",
        )
        for name, difference, bound, what in (
            ("two_runs", found.run_difference, SAME, "Two runs"),
            ("two_sessions", found.session_difference, SAME, "Two sessions"),
            ("alone_and_in_a_batch", found.batch_difference, ALONE, "A row alone and in a batch"),
        )
    ]

"""Gate: bad inputs give finite outputs of the right shape, and small noise changes few answers.

Which bad inputs are tried is in :mod:`fleet_server.releases.laboratory.exercise`; here is what is
asked of the answers.
"""

from fleet_server.releases.gates.given import Given
from fleet_server.releases.states import GateResult

NAME = "robustness"
ADVICE = (
    "Let the model itself bound its inputs when you export it: Clip to the range that it was "
    "trained on, and Where(IsNaN(x), a usual value, x); or --override robustness=REASON."
)
MOST_FLIPS = 0.05
"""Share of rows whose answer may change by noise of a hundredth of an input's deviation."""


def judge(given: Given) -> list[GateResult]:
    """Return the shares of rows with finite outputs, and the flip rate."""
    found = given.exercise
    results = []
    for name, share, what in (
        ("finite_missing", found.missing_finite, "missing values (NaN)"),
        ("finite_out_of_range", found.out_of_range_finite, "values far out of range"),
        ("finite_corrupted", found.corrupted_finite, "corrupted values"),
    ):
        if share is None:
            note = f"Not tried: no input can hold {what}."
            results.append(GateResult(NAME, name, None, None, True, note))
            continue
        note = (
            f"{share:.1%} of {found.rows} rows with {what} give finite outputs of the right shape; "
            "all have to."
        )
        results.append(GateResult(NAME, name, share, 1.0, share >= 1.0, note))
    if found.flips is None:
        note = "Not tried: inputs of codes have no small perturbation."
        return [*results, GateResult(NAME, "flip_rate", None, None, True, note)]
    note = (
        f"Noise of 1% of an input's deviation changes the answer on {found.flips:.1%} of "
        f"{found.rows} rows; at most {MOST_FLIPS:.0%} may."
    )
    flips = GateResult(NAME, "flip_rate", found.flips, MOST_FLIPS, found.flips <= MOST_FLIPS, note)
    return [*results, flips]

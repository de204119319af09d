"""Gate: bad inputs give finite outputs of the right shape, and small noise changes few answers.

Which bad inputs are tried is in :mod:`fleet_server.releases.laboratory.exercise`; here is what is
asked of the answers. Values that are numbers have to give numbers. What is missing is another
matter: float arithmetic passes NaN on (IEEE 754-2019, 6.2), and most models leave that to the
application. There a release may not be worse than the float model that it was made of.
"""

from fleet_server.releases.gates.exercised import Exercised
from fleet_server.releases.gates.given import Given
from fleet_server.releases.states import GateResult

NAME = "robustness"
ADVICE = (
    "Let the model itself bound its inputs when you export it: Clip to the range that it was "
    "trained on, and Where(IsNaN(x), a usual value, x); or --override robustness=REASON."
)
PASSED_ON = (
    "The model passes missing values on to its output: applications must not send any. To bound "
    "them in the model, export it with Where(IsNaN(x), a usual value, x) in front."
)
MOST_FLIPS = 0.05
"""Share of rows whose answer may change by noise of a hundredth of an input's deviation."""


def judge(given: Given) -> list[GateResult]:
    """Return the shares of rows with finite outputs, and the flip rate."""
    found = given.exercise
    results = [_missing(found)]
    for name, share, what in (
        ("finite_out_of_range", found.out_of_range_finite, "values far out of range"),
        ("finite_corrupted", found.corrupted_finite, "corrupted values"),
    ):
        note = f"{_told(share, found.rows, what)}; all have to."
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


def _missing(found: Exercised) -> GateResult:
    name, share, bound = "finite_missing", found.missing_finite, found.missing_finite_float
    if share is None or bound is None:
        note = "Not tried: no input can hold missing values (NaN)."
        return GateResult(NAME, name, None, None, True, note)
    note = _told(share, found.rows, "missing values (NaN)")
    if bound >= 1:
        note += ", and all of the float model; no release may be worse."
    else:
        note += f", {bound:.1%} of the float model; no release may be worse. {PASSED_ON}"
    return GateResult(NAME, name, share, bound, share >= bound, note)


def _told(share: float, rows: int, what: str) -> str:
    return f"{share:.1%} of {rows} rows with {what} give finite outputs of the right shape"

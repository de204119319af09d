"""Gate: inputs, outputs and classes are those of the release before, or somebody approved others.

An approved change starts the features anew, so it needs a sample to stand on: baseline and golden
rows, which parity ran on, of a thousand records.
"""

from fleet_server.releases.gates.given import Given, SchemaChange
from fleet_server.releases.states import GateResult

NAME = "feature-schema"
ADVICE = (
    "Push it as another model; or, if every device's application is ready for it, with "
    "--approve-schema REASON and 1,000 baseline and golden rows."
)
REVALIDATION_ROWS = 1_000


def judge(given: Given) -> list[GateResult]:
    """Return what :func:`judge_change` says of the change."""
    return judge_change(given.schema)


def judge_change(change: SchemaChange) -> list[GateResult]:
    """Return the number of differences, and the rows that an approved change was tried on."""
    count = len(change.differences)
    if not count:
        note = "Inputs, outputs and classes are those of the release before, or the first."
        return [GateResult(NAME, "changes", 0, 0, True, note)]
    told = " ".join(change.differences)[:600]
    if not change.approval:
        return [GateResult(NAME, "changes", count, 0, False, told)]
    results = [
        GateResult(NAME, "changes", count, None, True, f"{told} Approved: {change.approval}"[:1000])
    ]
    for field, rows in (("baseline", change.baseline_rows), ("golden", change.golden_rows)):
        results.append(
            GateResult(
                NAME,
                f"{field}_rows",
                rows,
                REVALIDATION_ROWS,
                rows >= REVALIDATION_ROWS,
                f"A changed schema was tried on {rows} {field} rows; {REVALIDATION_ROWS} are "
                "needed.",
            )
        )
    return results

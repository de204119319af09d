"""What came of exercising a model: the answer of a laboratory's child, and what two gates judge.

Decides the form and its bounds, since it comes from a process in which a hostile model may have
run. How a model is exercised is in :mod:`fleet_server.releases.laboratory.exercise`.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

Rows = Annotated[int, Meta(ge=0, le=1 << 40)]
Share = Annotated[float, Meta(ge=0, le=1)]
Difference = Annotated[float, Meta(ge=0, le=1e9)]


class Exercised(msgspec.Struct, frozen=True, tag=True):
    """How the model took inputs that it was not made for; shares are of ``rows``.

    ``missing_finite_float`` is the float model's, on the same rows.
    None: not tried, since inputs of codes have no such values. Differences are the largest over
    all outputs, as a share of the output's span on these rows.
    """

    rows: Rows
    missing_finite: Share | None
    missing_finite_float: Share | None
    out_of_range_finite: Share
    corrupted_finite: Share
    flips: Share | None
    run_difference: Difference
    session_difference: Difference
    batch_difference: Difference

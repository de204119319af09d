"""What a gate of one's own is given and returns: the words between it and the server.

A gate is a callable that an installed package names as an entry point of the group
``edgefleet.gates``. It takes a :class:`Submission` and returns findings. It runs in a child process
without a network, with limits on memory and time; it can read the release's files and write
nothing that stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUP = "edgefleet.gates"
WALL_S = 60.0
"""How long a gate may take: it is given outputs and need not run the model."""

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Submission:
    """A release before it is sealed. Arrays are read-only; their first axis is the row.

    Attributes:
        model: the model's name.
        version: of the release.
        kind: how the first output is read: ``logits``, ``probabilities`` or ``values``.
        artifact: path of the file that is to ship.
        float_model: path of the file that was uploaded.
        golden: the golden rows, by input.
        golden_outputs: outputs of what is to ship on them.
        float_outputs: outputs of the float model on them.
        baseline: the baseline rows, by input.
        baseline_outputs: outputs of what is to ship on them.
        evaluation: the evaluation rows, by input; empty if none were sent.
        labels: ``{"label": …}`` of the evaluation rows; empty if none were sent.
        slices: the slice columns of the evaluation rows, by name.
        evaluation_outputs: outputs of what is to ship on the evaluation rows.
        production_outputs: the production release's on the evaluation rows, if it was compared.
    """

    model: str
    version: str
    kind: str
    artifact: str
    float_model: str
    golden: Arrays
    golden_outputs: Arrays
    float_outputs: Arrays
    baseline: Arrays
    baseline_outputs: Arrays
    evaluation: Arrays
    labels: Arrays
    slices: Arrays
    evaluation_outputs: Arrays
    production_outputs: Arrays


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure: its name, its bound (None: only recorded), the verdict, and a sentence."""

    name: str
    passed: bool
    figure: float | None = None
    bound: float | None = None
    note: str = ""

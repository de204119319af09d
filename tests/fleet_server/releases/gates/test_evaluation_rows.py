"""Guards from labelled rows that fit neither model nor metric."""

from typing import Any

import numpy as np
import pytest

LABELS = np.arange(100) % 3


@pytest.mark.parametrize(
    ("more", "gate", "code"),
    [
        ({}, "data", "no_labels"),
        ({"label": LABELS + 1}, "data", "wrong_labels"),
        ({"label": LABELS - 1}, "data", "wrong_labels"),
        ({"label": LABELS + 0.5}, "data", "wrong_labels"),
        ({"label": LABELS[:, None]}, "data", "wrong_labels"),
        ({"label": LABELS[:99]}, "data", "wrong_rows"),
        ({"label": LABELS, "slice:site": LABELS[:50]}, "data", "wrong_rows"),
        ({"label": LABELS, "slice:site": LABELS / 2}, "data", "wrong_slices"),
        ({"label": LABELS, "slice:\x1b[2J": LABELS}, "data", "wrong_slices"),
        ({"label": LABELS, "slice:": LABELS}, "data", "wrong_slices"),
        ({"label": LABELS, "surprise": LABELS}, "data", "wrong_inputs"),
        ({"label": LABELS, "metric": "rmse"}, "metric", "metric_does_not_fit"),
    ],
)
def test_rows_that_do_not_fit(
    stage: Any, npz: Any, rows: Any, more: dict[str, Any], gate: str, code: str
) -> None:
    arrays = {name: value for name, value in more.items() if isinstance(value, np.ndarray)}
    options = {name: value for name, value in more.items() if name not in arrays}
    problem = stage.refused(evaluation=npz(features=rows(), **arrays), **options)
    assert (problem.gate, problem.code) == (gate, code)


def test_slice_of_a_name_a_row(stage: Any, npz: Any, rows: Any) -> None:
    codes = {"slice:person": np.arange(300)}
    evaluation = npz(features=rows(300), label=np.arange(300) % 3, **codes)
    problem = stage.refused(evaluation=evaluation)
    assert (problem.code, problem.figure, problem.bound) == ("too_many_slices", 300, 200)


@pytest.mark.parametrize(
    "array",
    [np.zeros((100, 4)), np.zeros((99, 3)), np.float32(1), np.zeros(0), np.full((100, 3), np.nan)],
)
def test_reference_outputs_that_do_not_fit(
    stage: Any, npz: Any, rows: Any, array: np.ndarray
) -> None:
    golden = npz(features=rows(), **{"output:logits": array})
    assert stage.refused(golden=golden).gate == "data"


def test_reference_for_no_output(stage: Any, npz: Any, rows: Any) -> None:
    golden = npz(features=rows(), **{"output:other": np.zeros((100, 3))})
    assert stage.refused(golden=golden).code == "wrong_reference"

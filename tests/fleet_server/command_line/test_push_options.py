"""Guards from options of a push that the server would take for something else."""

import json

import pytest

from fleet_server.command_line.output import CommandError
from fleet_server.command_line.push_options import fields


def test_what_the_file_does_not_say() -> None:
    found = fields(["input=n,576", "state=2,n,128"], ["sr=16000"], ["state=stateN"], "")
    assert json.loads(found["interface"]) == {
        "shapes": {"input": ["n", 576], "state": [2, "n", 128]},
        "constants": {"sr": 16000},
        "states": {"state": "stateN"},
    }


def test_tensor_with_a_sign_in_its_name() -> None:
    found = fields(["a=b:0=n,4"], None, None, "")
    assert json.loads(found["interface"])["shapes"] == {"a=b:0": ["n", 4]}


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("1500000", "1500000"), ("300KiB", "307200"), ("1.5MiB", "1572864")]
)
def test_size_budget(text: str, size_bytes: str) -> None:
    assert fields(None, None, None, text) == {"size_budget_bytes": size_bytes}


def test_numpy_that_the_application_needs() -> None:
    assert fields(None, None, None, "", None, "2.0") == {"numpy": "2.0"}


def test_labels_of_a_bench() -> None:
    found = fields(None, None, None, "", ["hardware=pi4", "site=lab"])
    assert json.loads(found["bench"]) == {"hardware": "pi4", "site": "lab"}


@pytest.mark.parametrize("word", ["hardware", "=pi4", "hardware="])
def test_bench_that_is_no_label(word: str) -> None:
    with pytest.raises(CommandError):
        fields(None, None, None, "", [word])


@pytest.mark.parametrize(
    ("shapes", "constants", "states", "budget"),
    [
        (["state"], [], [], ""),
        (["state=2;n"], [], [], ""),
        (["state=2,-1"], [], [], ""),
        ([], ["sr=fast"], [], ""),
        ([], [], ["=stateN"], ""),
        ([], [], [], "1GB"),
        ([], [], [], "-1"),
        ([], [], [], "MiB"),
    ],
)
def test_option_that_is_not_of_its_form(
    shapes: list[str], constants: list[str], states: list[str], budget: str
) -> None:
    with pytest.raises(CommandError):
        fields(shapes, constants, states, budget)


def test_nothing_said() -> None:
    assert fields(None, None, None, "") == {}

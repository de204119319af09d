"""A few hundred inputs for every parser of untrusted bytes; ``make fuzz`` is the long profile."""

from __future__ import annotations

import pytest

from tests.fuzz import engines
from tests.fuzz.engines import Tally, attempt, by_hypothesis
from tests.fuzz.mutations import mutate
from tests.fuzz.targets import TARGETS, Target

INPUTS = 600


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_input_that_nobody_expected(target: Target) -> None:
    tally = by_hypothesis(target, max(INPUTS // target.cost, 100), start=1)
    assert tally.faults == 0
    assert tally.inputs >= 100


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_seeds_are_good_ones(target: Target) -> None:
    """From what is refused at once no mutation gets far."""
    refused = 0
    for data in target.seeds:
        try:
            target.run(data)
        except target.errors:
            refused += 1
    assert refused < len(target.seeds)


def test_mutations_are_repeatable_and_differ() -> None:
    seed = TARGETS[1].seeds[0]
    made = [mutate(seed, number) for number in range(200)]
    assert made == [mutate(seed, number) for number in range(200)]
    assert len(set(made)) > 150


def test_fault_is_counted_and_kept(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A harness that finds nothing in a broken parser proves nothing."""
    folder = tmp_path_factory.mktemp("faults")
    monkeypatch.setattr(engines, "FAULTS", folder)
    broken = Target("broken", lambda data: 1 // (len(data) % 2), [b"a", b"ab"])
    tally = Tally("broken", "")
    attempt(broken, b"ab", tally)
    attempt(broken, b"a", tally)
    assert (tally.inputs, tally.faults, tally.accepted) == (2, 1, 1)
    assert [path.read_bytes() for path in folder.iterdir()] == [b"ab"]

"""With any single check disabled, at least one attack gets through: no check is there for show.

A check without an attack that needs it could be lost unnoticed. Each mutant (tests/attacks/mutants)
has one check taken out; it is killed if an attack of the suite fails against it, and it must still
let the fleet's own orders through, so that it is not killed for being broken.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks import (
    test_bench_jobs,
    test_exchanged_on_the_way,
    test_fast_forward,
    test_freeze,
    test_key_confusion,
    test_links_in_the_store,
    test_ordered_checks,
    test_rolled_back_metadata,
    test_swap_between_check_and_load,
    test_too_few_signatures,
)
from tests.attacks.bench_mutants import BENCH
from tests.attacks.core_scene import CoreScene
from tests.attacks.metadata_mutants import METADATA
from tests.attacks.mutants import CHECKS, DOCUMENTS, Mutant, alive
from tests.attacks.siege import Siege
from tests.attacks.suites import calls, killer

pytestmark = pytest.mark.slow

ON_DOCUMENTS = calls(test_ordered_checks)
ON_BENCH_JOBS = calls(test_bench_jobs)
FIRST = {
    "signature": [test_too_few_signatures, test_fast_forward, test_key_confusion],
    "version": [test_rolled_back_metadata, test_fast_forward],
    "expiry": [test_freeze, test_rolled_back_metadata],
    "target": [test_exchanged_on_the_way],
    "loading": [test_swap_between_check_and_load],
    "storing": [test_links_in_the_store],
}
"""Where the attack that needs a check is looked for first; the others follow."""
FILES = [*dict.fromkeys(module for found in FIRST.values() for module in found)]


def test_attacks_are_withstood_without_a_mutant() -> None:
    assert len(ON_DOCUMENTS) > 40
    assert killer(ON_DOCUMENTS) is None


@pytest.mark.parametrize("mutant", DOCUMENTS, ids=str)
def test_check_on_documents(mutant: Mutant) -> None:
    with alive(mutant):
        CoreScene().obeys()
        found = killer(ON_DOCUMENTS)
    assert found is not None, f"no attack needs this check: {mutant}"


@pytest.mark.parametrize("mutant", BENCH, ids=str)
def test_check_on_bench_jobs(mutant: Mutant) -> None:
    assert killer(ON_BENCH_JOBS) is None
    with alive(mutant):
        test_bench_jobs.test_its_own_job_is_taken()
        found = killer(ON_BENCH_JOBS)
    assert found is not None, f"no attack needs this check: {mutant}"


@pytest.mark.parametrize("mutant", METADATA, ids=str)
def test_check_on_what_exists(mutant: Mutant, siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    siege.fetch(release)
    first = FIRST[mutant.check.partition(":")[0]]
    with alive(mutant):
        siege.fetch(release)
        found = killer(calls(*first)) or killer(calls(*(m for m in FILES if m not in first)))
    assert found is not None, f"no attack needs this check: {mutant}"


def test_every_numbered_check_has_a_mutant() -> None:
    assert {mutant.check[0] for mutant in DOCUMENTS} == set("12345678")


def test_mutant_that_changes_nothing_survives() -> None:
    """A harness that kills everything proves nothing."""
    piece = "if epoch < floor:"
    with alive(Mutant("none", CHECKS, "_check_epoch", piece, "if epoch <= floor - 1:")):
        assert killer(ON_DOCUMENTS) is None


def test_mutant_of_code_that_is_gone_is_noticed() -> None:
    mutant = Mutant("none", CHECKS, "_check_epoch", "no such piece", "pass")
    with pytest.raises(AssertionError, match="has changed"), alive(mutant):
        pass


def test_mutant_is_gone_afterwards(tmp_path: Path) -> None:
    with alive(DOCUMENTS[0]):
        assert killer(ON_DOCUMENTS) is not None
    assert killer(ON_DOCUMENTS) is None

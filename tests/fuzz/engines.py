"""The two engines: hypothesis draws structured mutations, atheris goes where new code is reached.

Both hand their inputs to :func:`attempt`, which decides what a fault is and keeps its bytes. An
engine runs one target in this process; tests/fuzz/run.py gives each a process of its own, so that
the peak of its memory is its own.
"""

from __future__ import annotations

import hashlib
import resource
import shutil
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import LARGEST_BYTES, mutate
from tests.fuzz.targets import TARGETS, Target

FAULTS = Path(__file__).resolve().parents[2] / "build" / "fuzz"
FAULTS_KEPT = 20


@dataclass
class Tally:
    """What became of the inputs of one target; ``faults`` are the files that reproduce one."""

    target: str
    engine: str
    inputs: int = 0
    accepted: int = 0
    grown_bytes: int = 0
    faults: int = 0


def target_of(name: str) -> Target:
    return next(target for target in TARGETS if target.name == name)


def attempt(target: Target, data: bytes, tally: Tally) -> None:
    """Give one input to a target; what it raises must be of its documented family."""
    tally.inputs += 1
    try:
        target.run(data)
    except target.errors:
        return
    except Exception:
        tally.faults += 1
        if tally.faults <= FAULTS_KEPT:
            _keep(target, data)
        return
    tally.accepted += 1


def _keep(target: Target, data: bytes) -> None:
    FAULTS.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(data).hexdigest()[:16]
    path = FAULTS / f"{target.name.replace(' ', '-').replace(',', '')}-{digest}"
    path.write_bytes(data)
    print(f"fuzz: FAULT in {target.name}: {path}", file=sys.stderr)
    traceback.print_exc(limit=-6)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def by_hypothesis(target: Target, inputs: int, start: int) -> Tally:
    """Run so many inputs that hypothesis draws: mutations of the seeds, and plain bytes."""
    tally = Tally(target.name, "hypothesis")
    drawn = st.one_of(
        st.builds(mutate, st.sampled_from(target.seeds), st.integers(0, 2**63)),
        st.builds(
            lambda data, number: mutate(mutate(data, number), number + 1),
            st.sampled_from(target.seeds),
            st.integers(0, 2**63),
        ),
        st.binary(max_size=300),
    )
    _warm(target)
    before = peak_bytes()

    @seed(start)
    @settings(
        max_examples=inputs,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn)
    def run(data: bytes) -> None:
        attempt(target, data, tally)

    run()
    # Where hypothesis has drawn all that it can tell apart, the generator goes on alone.
    for number in range(inputs - tally.inputs):
        attempt(target, mutate(target.seeds[number % len(target.seeds)], start + number), tally)
    tally.grown_bytes = peak_bytes() - before
    return tally


def by_atheris(target: Target, inputs: int, start: int, finished: Any) -> None:
    """Run so many inputs under libFuzzer, which ends the process; ``finished`` gets the tally."""
    import atheris

    tally = Tally(target.name, "atheris")
    _warm(target)
    before = peak_bytes()

    corpus = Path(tempfile.mkdtemp(prefix="fuzz-corpus-"))
    for index, data in enumerate(target.seeds):
        (corpus / f"seed-{index}").write_bytes(data)

    def mutated(data: bytes, largest: int, number: int) -> bytes:
        # A quarter by libFuzzer's own mutations, which follow what it saw compared. It sees no
        # branch of a compiled parser, so half begin again at what is right.
        if number % 4 == 0:
            return bytes(atheris.Mutate(data, largest))
        begun = data if number % 4 == 1 else target.seeds[number // 4 % len(target.seeds)]
        return mutate(begun, number)[:largest]

    def one(data: bytes) -> None:
        if tally.inputs >= inputs:
            return
        attempt(target, data, tally)
        if tally.inputs == inputs:
            tally.grown_bytes = peak_bytes() - before
            shutil.rmtree(corpus, ignore_errors=True)
            finished(tally)

    atheris.Setup(
        [
            "fuzz",
            f"-runs={inputs * 2}",
            f"-seed={start % (1 << 31) + 1}",
            f"-max_len={LARGEST_BYTES}",
            "-mutate_depth=1",
            "-verbosity=0",
            "-print_final_stats=0",
            str(corpus),
        ],
        one,
        custom_mutator=mutated,
    )
    atheris.Fuzz()


def _warm(target: Target) -> None:
    """What is cached once is no growth."""
    throwaway = Tally(target.name, "")
    for number, data in enumerate(target.seeds * 20):
        attempt(target, data if number % 2 else mutate(data, number), throwaway)

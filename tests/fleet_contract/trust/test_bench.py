"""Guards a bench device from being made to run what nobody signed for it, and from endless work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_contract import codec, limits
from fleet_contract.errors import Reason, Refused
from fleet_contract.manifest import FileRef, Runtime, TensorSpec
from fleet_contract.trust.bench import BENCH_JOB_TYPE, BenchJob, Entrant, check_bench_job
from fleet_contract.trust.directive import DIRECTIVE_TYPE
from fleet_contract.trust.keyset import Keyset

JOB = BenchJob(
    fleet="home",
    device="bench-1",
    number=7,
    generation=3,
    issued_ms=1_000,
    expires_ms=2_000,
    rival=Entrant(Runtime.ONNXRUNTIME, FileRef("a" * 64, 100)),
    candidates=[Entrant(Runtime.ONNXRUNTIME, FileRef("b" * 64, 50))],
    rows=FileRef("c" * 64, 10),
    inputs=[TensorSpec("x", "float32", [None, 2])],
    outputs=[TensorSpec("y", "float32", [None, 3])],
    most_ms=2_000,
)
replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def check(keyset: Keyset, director: Any) -> Callable[..., BenchJob]:
    def call(job: BenchJob = JOB, *, data: bytes | None = None, **changes: Any) -> BenchJob:
        sealed = director.seal(BENCH_JOB_TYPE, codec.encode_json(job)) if data is None else data
        arguments: dict[str, Any] = {
            "keyset": keyset,
            "fleet": "home",
            "device": "bench-1",
            "done": 6,
            "now_ms": 1_500,
        }
        return check_bench_job(sealed, **(arguments | changes))

    return call


def refusal(call: Callable[[], object]) -> Reason:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.reason


def test_good_job_is_taken(check: Any) -> None:
    assert check() == JOB
    assert set(JOB.files()) == {"a" * 64, "b" * 64, "c" * 64}


def test_1_size(check: Any, director: Any) -> None:
    padded = director.seal(BENCH_JOB_TYPE, codec.encode_json(JOB)) + b" " * limits.ENVELOPE_BYTES
    assert refusal(lambda: check(data=padded)) is Reason.TOO_LARGE


def test_2_key_that_nobody_named(check: Any, make_key: Any) -> None:
    sealed = make_key(9).seal(BENCH_JOB_TYPE, codec.encode_json(JOB))
    assert refusal(lambda: check(data=sealed)) is Reason.UNKNOWN_KEY


def test_3_signature_over_another_job(check: Any, director: Any) -> None:
    encoded = codec.encode_json(replace(JOB, number=8))
    other = msgspec.json.decode(director.seal(BENCH_JOB_TYPE, encoded))
    mine = msgspec.json.decode(director.seal(BENCH_JOB_TYPE, codec.encode_json(JOB)))
    mine["signatures"] = other["signatures"]
    assert refusal(lambda: check(data=msgspec.json.encode(mine))) is Reason.BAD_SIGNATURE


def test_directive_does_not_pass_for_a_job(check: Any, director: Any) -> None:
    sealed = director.seal(DIRECTIVE_TYPE, codec.encode_json(JOB))
    assert refusal(lambda: check(data=sealed)) is Reason.MALFORMED


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fleet": "away"}, Reason.WRONG_AUDIENCE),
        ({"device": "bench-2"}, Reason.WRONG_AUDIENCE),
        ({"generation": 2}, Reason.OLD_GENERATION),
        ({"generation": 4}, Reason.UNCONFIRMED_GENERATION),
        ({"number": 6}, Reason.OLD_EPOCH),
        ({"number": 0}, Reason.OLD_EPOCH),
        ({"expires_ms": 1_500}, Reason.EXPIRED),
        ({"rows": FileRef("c" * 64, limits.BENCH_ROWS_BYTES + 1)}, Reason.TOO_LARGE),
        (
            {"rival": Entrant(Runtime.ONNXRUNTIME, FileRef("a" * 64, limits.BENCH_BYTES))},
            Reason.TOO_LARGE,
        ),
        ({"candidates": []}, Reason.MALFORMED),
        ({"most_ms": limits.BENCH_RACE_MS + 1}, Reason.MALFORMED),
    ],
)
def test_each_later_check_refuses(check: Any, changes: dict[str, Any], reason: Reason) -> None:
    assert refusal(lambda: check(replace(JOB, **changes))) is reason


def test_of_two_faults_the_earlier_is_named(check: Any) -> None:
    job = replace(JOB, device="bench-2", generation=2, number=0, expires_ms=0)
    assert refusal(lambda: check(job)) is Reason.WRONG_AUDIENCE
    job = replace(job, device="bench-1")
    assert refusal(lambda: check(job)) is Reason.OLD_GENERATION
    assert refusal(lambda: check(replace(job, generation=3))) is Reason.OLD_EPOCH


@given(data=st.binary(max_size=400), number=st.integers(0, 50), done=st.integers(0, 50))
def test_any_bytes_and_numbers_give_a_job_or_a_refusal(
    check: Any, data: bytes, number: int, done: int
) -> None:
    assert isinstance(refusal(lambda: check(data=data)), Reason)
    job = replace(JOB, number=number)
    if number > done:
        assert check(job, done=done) == job
    else:
        assert refusal(lambda: check(job, done=done)) is Reason.OLD_EPOCH

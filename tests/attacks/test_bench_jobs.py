"""Attack: a device on a bench is handed a job that is not for it, not now, or not once more.

A bench job makes a device load models that no release names, so its checks are all that stands
between it and foreign code. Each job here is signed by the right key, which the attacker has
recorded; what is forged altogether is met by the checks that all documents share.
"""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from fleet_contract import limits
from fleet_contract.errors import Reason, Refused
from fleet_contract.manifest import FileRef, Runtime, TensorSpec
from fleet_contract.trust.bench import BENCH_JOB_TYPE, BenchJob, Entrant, check_bench_job
from tests.device_agent.core.toy_device import DEVICE, FLEET, START_MS, Authority

AUTHORITY = Authority(generation=3)
LAST = 41
"""The number of the job that the device began last."""
JOB = BenchJob(
    fleet=FLEET,
    device=DEVICE,
    number=LAST + 1,
    generation=AUTHORITY.generation,
    issued_ms=START_MS,
    expires_ms=START_MS + 1,
    rival=Entrant(Runtime.ONNXRUNTIME, FileRef("a" * 64, 100)),
    candidates=[Entrant(Runtime.ONNXRUNTIME, FileRef("b" * 64, 50))],
    rows=FileRef("c" * 64, 10),
    inputs=[TensorSpec("x", "float32", [None, 2])],
    outputs=[TensorSpec("y", "float32", [None, 3])],
    most_ms=2_000,
)
HALF = FileRef("d" * 64, limits.BENCH_BYTES // 2)


def offer(**changes: Any) -> BenchJob:
    return check_bench_job(
        AUTHORITY.seal(BENCH_JOB_TYPE, replace(JOB, **changes)),
        keyset=AUTHORITY.keyset(),
        fleet=FLEET,
        device=DEVICE,
        done=LAST,
        now_ms=START_MS,
    )


def test_its_own_job_is_taken() -> None:
    """Without this, a device that refuses everything would withstand every attack."""
    assert offer() == JOB


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fleet": "another"}, Reason.WRONG_AUDIENCE),
        ({"device": "another"}, Reason.WRONG_AUDIENCE),
        ({"generation": AUTHORITY.generation - 1}, Reason.OLD_GENERATION),
        ({"generation": AUTHORITY.generation + 1}, Reason.UNCONFIRMED_GENERATION),
        ({"number": LAST}, Reason.OLD_EPOCH),
        ({"number": LAST - 1}, Reason.OLD_EPOCH),
        ({"expires_ms": START_MS}, Reason.EXPIRED),
        (
            {
                "rival": Entrant(Runtime.ONNXRUNTIME, replace(HALF, digest="e" * 64)),
                "candidates": [Entrant(Runtime.ONNXRUNTIME, HALF)],
            },
            Reason.TOO_LARGE,
        ),
        ({"rows": FileRef("c" * 64, limits.BENCH_ROWS_BYTES + 1)}, Reason.TOO_LARGE),
    ],
)
def test_recorded_job(changes: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        offer(**changes)
    assert caught.value.reason is reason

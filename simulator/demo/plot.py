"""The demo's plot: which releases are rolled out, by which plans.

Decides numbers only: they are chosen so that the whole story takes about a minute on two cores,
with the same statistics as a rollout that takes days.
"""

from typing import Any

DEVICES = 60
PROCESSES = 3
FIRST, GOOD, BAD = "1.0.0", "1.1.0", "2.0.0"
COHORT = "default"


def _stage(name: str, kind: str, percent: float, soak_ms: int, predictions: int) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "percent": percent,
        "soak_ms": soak_ms,
        "minimum_devices": 3,
        "minimum_predictions": predictions,
        "deadline_ms": 180_000,
    }


_CANARIES = [
    _stage("canary-5", "canary", 5, 5_000, 80),
    _stage("canary-25", "canary", 25, 4_000, 400),
    _stage("full", "full", 100, 3_000, 600),
]
_COMMON: dict[str, Any] = {
    "report_every_ms": 1_000,
    "device_soak_ms": 2_000,
    "lookback_ms": 3_600_000,
    "looks": 2,
    "guardrails": {
        "silence_intervals": 5,
        "silence_grace_ms": 15_000,
        "minimum_rows": 15,
        # Sixty devices share the cores of one machine: latencies swing by more than in a fleet.
        "latency_ratio": 3.0,
    },
}
CAREFUL: dict[str, Any] = {
    "name": "demo",
    "stages": [_stage("shadow", "shadow", 10, 4_000, 80), *_CANARIES],
    **_COMMON,
}
HASTY: dict[str, Any] = {"name": "demo-without-shadow", "stages": _CANARIES, **_COMMON}
"""Somebody is in a hurry and leaves the shadow stage out: the canaries must find it."""

ROLLOUTS: tuple[tuple[str, dict[str, Any], str], ...] = (
    (FIRST, CAREFUL, "the first release, for every device"),
    (GOOD, CAREFUL, "a better model: shadow, 5%, 25%, 100%"),
    (BAD, HASTY, "passed every check at staging, and is wrong in the field"),
)

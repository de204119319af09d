"""Gates: the release is not much slower than production, and takes not much more memory.

Latency is measured on a bench device where there is one for it, else on the server; memory always
on the server. The server is not the target, so both releases are measured side by side, and their
relation says something about a device. Small differences in small models matter to no device.
"""

from fleet_server.releases.gates.given import Given
from fleet_server.releases.states import GateResult

LATENCY, MEMORY = "latency", "memory"
LATENCY_ADVICE = (
    "See what the search tried (edgefleet model show); a larger model may be meant: then "
    "--override latency=REASON."
)
MEMORY_ADVICE = (
    "Look for large intermediate tensors (Expand, Tile, big layers); a larger model may be meant: "
    "then --override memory=REASON."
)
FACTOR = 1.5
"""How many times production's figure: half as much again is what a plan for devices leaves free."""
SLACK_US = 200.0
"""Below it no device notices, and the clock of a busy server is no finer."""
SLACK_BYTES = 16 * 1024**2
"""Less than what an interpreter takes that has just started."""


def judge_latency(given: Given) -> list[GateResult]:
    """Return the median latency of single rows, in microseconds."""
    cost = given.cost
    if cost is None:
        return []
    bound = max(FACTOR * cost.production_latency_us, cost.production_latency_us + SLACK_US)
    return [
        GateResult(
            LATENCY,
            "latency_us",
            round(cost.latency_us, 1),
            round(bound, 1),
            cost.latency_us <= bound,
            f"A row takes {cost.latency_us:.0f} us; production's takes "
            f"{cost.production_latency_us:.0f} us, so {bound:.0f} us are allowed. Measured on "
            f"{cost.timed_on}.",
        )
    ]


def judge_memory(given: Given) -> list[GateResult]:
    """Return what loading and running the model takes, in bytes."""
    cost = given.cost
    if cost is None:
        return []
    before = cost.production_memory_bytes
    bound = max(FACTOR * before, before + SLACK_BYTES)
    return [
        GateResult(
            MEMORY,
            "memory_bytes",
            cost.memory_bytes,
            bound,
            cost.memory_bytes <= bound,
            f"The model takes {_mib(cost.memory_bytes)}; production's takes {_mib(before)}, so "
            f"{_mib(bound)} are allowed. Measured on the server, not the target.",
        )
    ]


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / 1024**2:.1f} MiB"

"""What every gate returns, and the seed from which a gate may draw.

Decides the form of a verdict; how it is reached is each gate's own matter.
"""

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fleet_server.rollouts.plan import Guardrail
from fleet_server.rollouts.snapshot import DeviceRecord, Snapshot

Figure = Any
"""A number, a text, or a list of either: what JSON can carry."""


class Verdict(StrEnum):
    """``inconclusive`` means that the data do not suffice: nothing is promoted on it."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class GateResult:
    """A gate's verdict and what it rests on.

    ``statistic`` is what was measured and ``bound`` what it was held against. ``evidence`` is a
    p-value that fails below ``alpha``, or an e-value that fails from ``1 / alpha`` on;
    ``evidence_kind`` says which. ``alarm`` asks for a pause: something is wrong that the
    comparison does not pin on the candidate. ``detail`` is a sentence for a person.
    """

    guardrail: Guardrail
    verdict: Verdict
    statistic: float
    bound: float
    evidence: float
    evidence_kind: str
    alpha: float
    n_candidate: int
    n_control: int
    detail: str
    alarm: bool = False
    seed: int = 0
    figures: dict[str, Figure] = field(default_factory=dict)


def arms(snapshot: Snapshot) -> tuple[list[DeviceRecord], list[DeviceRecord]]:
    """Return the eligible devices of the candidate's arm and of the control, as randomised."""
    eligible = [device for device in snapshot.devices if device.eligible]
    return (
        [device for device in eligible if device.in_arm],
        [device for device in eligible if not device.in_arm],
    )


def seed_of(snapshot: Snapshot, guardrail: Guardrail, look: int) -> int:
    """Return the seed of one gate at one look: whoever knows the snapshot can repeat the draw."""
    stage = snapshot.stage.index if snapshot.stage is not None else -1
    text = f"{snapshot.rollout.id}/{snapshot.rollout.salt}/{stage}/{look}/{guardrail.value}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def too_few(
    guardrail: Guardrail, alpha: float, n_candidate: int, n_control: int, what: str
) -> GateResult:
    """Return the verdict on data that do not suffice; ``what`` says what is missing."""
    return GateResult(
        guardrail=guardrail,
        verdict=Verdict.INCONCLUSIVE,
        statistic=0.0,
        bound=0.0,
        evidence=1.0,
        evidence_kind="p",
        alpha=alpha,
        n_candidate=n_candidate,
        n_control=n_control,
        detail=f"Not enough to judge: {what}.",
    )

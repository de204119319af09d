"""What was signed for somebody else must not work here, whichever topic it is put on."""

from __future__ import annotations

import pytest

from fleet_contract.trust.directive import Assignment
from tests.attacks.battlefield import ASSIGNMENT_TOPIC, COHORT, FLEET, Battlefield

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "audience", [{"fleet": "factory"}, {"cohort": "field"}, {"model": "detector"}], ids=str
)
def test_directive_for_somebody_else(attacked: Battlefield, audience: dict[str, str]) -> None:
    attacked.expect_refusal("wrong_audience", attacked.signed(**audience))


def test_assignment_of_another_device(attacked: Battlefield) -> None:
    now_ms = attacked.directive().issued_ms
    foreign = Assignment(
        FLEET, "somebody-else", 1, now_ms + 1_000_000, now_ms, COHORT, {}, {}, {}, {}
    )
    signed = attacked.keyring.sign_assignment(foreign)
    attacked.expect_refusal("wrong_audience", signed, ASSIGNMENT_TOPIC)

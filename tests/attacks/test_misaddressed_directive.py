"""What was signed for somebody else must not work here, whichever topic it is put on."""

from __future__ import annotations

import pytest

from tests.attacks.battlefield import Battlefield
from tests.attacks.documents import ELSEWHERE, Attack, Scene, of

pytestmark = pytest.mark.slow


def heard(attack: Attack) -> bool:
    """A device does not even subscribe to what another cohort is told."""
    return "topic" not in attack.name


@pytest.mark.parametrize("attack", [attack for attack in of(4) if heard(attack)], ids=str)
def test_document_for_somebody_else(attacked: Battlefield, attack: Attack) -> None:
    attacked.withstand(attack)


def test_topic_of_another_cohort_is_not_heard(attacked: Battlefield) -> None:
    scene: Scene = attacked.scene()
    attacked.publish(scene.directive(cohort=ELSEWHERE), f"fleet/v1/home/cohort/{ELSEWHERE}/digits")
    attacked.restore()
    assert attacked.active_at_server() == attacked.stable.digest

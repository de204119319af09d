"""Two different orders with one number: somebody who holds the director's key tells two stories.

The device obeys the one that it heard first, and an alarm reaches the operators.
"""

from __future__ import annotations

import pytest

from fleet_contract.trust.directive import Stop
from tests.attacks.battlefield import TOPIC, Battlefield
from tests.attacks.insider import FLEET

pytestmark = pytest.mark.slow


def test_two_directives_of_one_epoch(
    attacked: Battlefield, caplog: pytest.LogCaptureFixture
) -> None:
    scene = attacked.scene()
    attacked.expect_refusal("equivocation", scene.directive(epoch=scene.newest_epoch))
    shown = [item for item in attacked.device()["refusals"] if item["reason"] == "equivocation"]
    assert shown[0]["topic"] == TOPIC
    assert str(scene.newest_epoch) in shown[0]["detail"]
    alarms = [line for line in caplog.records if "ALARM" in line.getMessage()]
    assert alarms
    assert alarms[0].levelname == "ERROR"


def test_two_stops_of_one_epoch(attacked: Battlefield) -> None:
    """The second story is that nothing was stopped."""
    now = attacked.directive()
    told = [
        attacked.keyring.sign_stop(
            Stop(FLEET, now.generation, now.epoch, now.issued_ms, stopped, "")
        )
        for stopped in (False, True)
    ]
    topic = f"fleet/v1/{FLEET}/stop"
    attacked.publish(told[0], topic)
    attacked.expect_refusal("equivocation", told[1], topic)

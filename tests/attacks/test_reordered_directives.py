"""A broker that hands messages out in another order, twice or late makes a device do nothing else.

Every order of four directives ends with the newest one, which is never left again.
"""

from __future__ import annotations

import itertools

import pytest

from device_agent.core import events
from fleet_contract.errors import Reason
from tests.attacks.battlefield import Battlefield
from tests.attacks.core_scene import TOPICS, CoreScene
from tests.device_agent.core.toy_device import A, B


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_every_order_ends_with_the_newest(order: tuple[int, ...]) -> None:
    scene = CoreScene()
    one, two = (scene.authority.to_arm(B, retry=retry) for retry in (1, 2))
    back = scene.authority.directive(retry=3)
    newest = scene.authority.to_arm(B, retry=4)
    said = [one, two, back, newest]
    for number in [*order, *order]:
        scene.device.feed(events.Received(TOPICS["directive"], said[number]))
        scene.device.live(10)
    assert set(scene.device.refusals()) == {Reason.OLD_EPOCH}, "the second round is a replay"
    scene.device.live(60_000)
    directive = scene.device.state.record.models["digits"].directive
    assert directive is not None
    assert directive.retry == 4
    assert scene.device.running == B.digest != A.digest


@pytest.mark.slow
def test_older_one_overtakes_the_newer_one(attacked: Battlefield) -> None:
    scene = attacked.scene()
    first, second = scene.older, scene.newest
    attacked.publish(second)
    attacked.expect_refusal("old_epoch", first)
    attacked.publish(second)
    attacked.expect_refusal("old_epoch", first)

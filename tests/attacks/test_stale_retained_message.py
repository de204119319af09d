"""A broker that forgets, or keeps what is old: the device loses nothing, and the server repairs it.

The attacker may clear and overwrite what is retained on every topic, the device's own included.
"""

from __future__ import annotations

import pytest

from fleet_contract import topics
from fleet_contract.trust.directive import Stop
from tests.attacks.battlefield import ASSIGNMENT_TOPIC, TOPIC, Battlefield
from tests.attacks.core_scene import TOPICS, CoreScene
from tests.attacks.insider import FLEET
from tests.device_agent.core.toy_device import A, B


@pytest.mark.parametrize("place", list(TOPICS))
def test_cleared_topic_says_nothing(place: str) -> None:
    scene = CoreScene()
    before = scene.device.state.record
    scene.receive(place, b"")
    assert scene.device.refusals() == []
    scene.unmoved(before)
    scene.obeys()


def test_restart_at_a_broker_that_holds_only_what_is_old() -> None:
    """It goes on with what it had, refuses what is old, and makes no forward move."""
    scene = CoreScene()
    scene.device.direct(scene.authority.to_arm(B))
    scene.device.live(60_000)
    assert scene.device.running == B.digest
    scene.device.retained[TOPICS["directive"]] = scene.older
    scene.device.boot()
    scene.device.connect()
    scene.device.live(60_000)
    assert scene.device.running == B.digest
    assert [reason.value for reason in scene.device.refusals()] == ["old_epoch"]


@pytest.mark.parametrize("lost", ["stop", "assignment", "directive"])
def test_restart_at_a_broker_that_lost_a_topic(lost: str) -> None:
    """Without all three orders nothing new is begun; what runs goes on."""
    scene = CoreScene()
    device = scene.device
    device.hold = set()
    device.boot()
    kept = {topic: data for topic, data in device.retained.items() if topic != TOPICS[lost]}
    forward = scene.authority.to_arm(B)
    if lost != "directive":
        kept[TOPICS["directive"]] = forward
    device.retained = kept
    device.connect()
    device.live(60_000)
    assert device.running == A.digest
    # The server repairs the topic, and all goes on.
    repaired = {
        "stop": lambda: scene.authority.stop(False),
        "assignment": scene.authority.assignment,
        "directive": lambda: forward,
    }[lost]()
    device.retain(TOPICS[lost], repaired)
    device.live(60_000)
    assert device.running == B.digest


@pytest.mark.slow
@pytest.mark.parametrize("topic", [TOPIC, ASSIGNMENT_TOPIC, topics.stop(FLEET)])
def test_cleared_on_the_real_broker(attacked: Battlefield, topic: str) -> None:
    attacked.publish(b"", topic)
    attacked.restore()


@pytest.mark.slow
def test_old_stop_in_the_place_of_the_new_one(attacked: Battlefield) -> None:
    now = attacked.directive()
    old = Stop(FLEET, now.generation, 1, 1, True, "an old fire")
    attacked.expect_refusal("old_epoch", attacked.keyring.sign_stop(old), topics.stop(FLEET))

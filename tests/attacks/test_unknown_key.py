"""A signature by a key that the device does not know: one message waits, and the keyset is asked
for once in a while, however many come.

The attacker wants the device to believe him, to forget what the fleet says, or to drown the server
in questions.
"""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_agent.core import effects as do
from device_agent.core import events
from device_agent.core.admission import KEYSET_EVERY_MS
from fleet_contract import codec, topics
from fleet_contract.errors import Reason
from tests.attacks.battlefield import Battlefield
from tests.attacks.core_scene import CoreScene
from tests.attacks.documents import STRANGER, of
from tests.device_agent.core.toy_device import FLEET, A, B

HOUR_MS = 3_600_000


def by_a_stranger(scene: CoreScene, number: int) -> bytes:
    key, scene.authority.director = scene.authority.director, STRANGER
    try:
        return scene.directive(retry=number)
    finally:
        scene.authority.director = key


def test_flood_asks_the_server_seldom_and_keeps_one_message() -> None:
    scene = CoreScene()
    for number in range(3_600):
        scene.receive("directive", by_a_stranger(scene, number))
        scene.device.live(1_000)
    asked = len(scene.device.effects_of(do.FetchKeyset))
    assert 1 <= asked <= 16, "twice as late each time"
    parked = scene.device.state.live.parked
    assert parked is not None
    assert len(scene.device.state.live.refusals) == 1
    assert scene.device.running == A.digest
    scene.device.feed(events.KeysetFetched(codec.encode_json(scene.authority.keyset())))
    scene.obeys()


def test_first_question_is_not_repeated_at_once() -> None:
    scene = CoreScene()
    for number in range(10):
        scene.receive("directive", by_a_stranger(scene, number))
    assert len(scene.device.effects_of(do.FetchKeyset)) == 1
    scene.device.live(KEYSET_EVERY_MS + 1)
    assert len(scene.device.effects_of(do.FetchKeyset)) == 2


def test_stranger_is_still_refused_after_the_keyset_came() -> None:
    """A parked message starts again at the first check."""
    scene = CoreScene()
    scene.receive("directive", by_a_stranger(scene, 1))
    scene.device.feed(events.KeysetFetched(codec.encode_json(scene.authority.keyset())))
    assert scene.device.running == A.digest
    assert scene.device.refusals() == [Reason.UNKNOWN_KEY]
    scene.obeys()


def test_attacker_s_message_pushes_the_fleet_s_out() -> None:
    """One message is kept, but with the fresh keyset the broker is asked for all of them again."""
    scene = CoreScene()
    scene.authority.director = Ed25519PrivateKey.from_private_bytes(b"\x04" * 32)
    good = scene.directive()
    scene.device.retain(topics.directive(FLEET, "lab", "digits"), good)
    scene.receive("stop", by_a_stranger(scene, 1))
    scene.device.feed(events.KeysetFetched(codec.encode_json(scene.authority.keyset())))
    assert scene.device.effects_of(do.Subscribe)
    scene.receive("directive", good)
    scene.device.live(60_000)
    assert scene.device.running == B.digest


@pytest.mark.slow
@pytest.mark.parametrize("attack", of(2), ids=str)
def test_stranger_against_the_real_agent(attacked: Battlefield, attack: object) -> None:
    attacked.withstand(attack)  # type: ignore[arg-type]

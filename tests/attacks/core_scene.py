"""The attacks on control documents against the agent's core alone: no network, no disk, no waiting.

``withstand`` is the whole of one attack: refused for the right reason, nothing changed, nothing
begun, and the next good directive is obeyed.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec

from device_agent.core import effects as do
from device_agent.core import events
from fleet_contract import topics
from fleet_contract.topics import DeviceChannel
from fleet_contract.trust.directive import DIRECTIVE_TYPE, STOP_TYPE, Stop
from tests.attacks.documents import Attack
from tests.device_agent.core.toy_device import (
    COHORT,
    DEVICE,
    FLEET,
    MODEL,
    START_MS,
    A,
    Authority,
    B,
    Device,
    connected,
)

TOPICS = {
    "directive": topics.directive(FLEET, COHORT, MODEL),
    "assignment": topics.device(FLEET, DEVICE, DeviceChannel.ASSIGNMENT),
    "stop": topics.stop(FLEET),
}


class CoreScene:
    """A device that runs A, by the second directive that it got; attackers want B."""

    def __init__(self) -> None:
        self.authority = Authority()
        self.device: Device = connected(self.authority)
        self.older = self.authority.directive()
        self.device.direct(self.older)
        self.newest = self.authority.directive()
        self.newest_epoch = self.authority.epoch
        self.device.direct(self.newest)
        self.device.wait(1000)
        assert self.device.running == A.digest
        self.device.performed.clear()

    @property
    def generation(self) -> int:
        return self.authority.generation

    def directive(self, *, also: dict[str, Any] | None = None, **changes: Any) -> bytes:
        sealed = self.authority.to_arm(B, **changes)
        if also is None:
            return sealed
        payload = msgspec.json.decode(base64.b64decode(json.loads(sealed)["payload"]))
        return self.authority.seal(DIRECTIVE_TYPE, {**payload, **also})

    def assignment(self, **changes: Any) -> bytes:
        blocked = {"blocks": {MODEL: [A.digest]}}
        return self.authority.assignment(**{**blocked, **changes})

    def stop(self, **changes: Any) -> bytes:
        fields = {
            "fleet": FLEET,
            "generation": self.generation,
            "epoch": changes.get("epoch") or self.authority.next_epoch(),
            "issued_ms": START_MS,
            "stopped": True,
            "reason": "",
        }
        return self.authority.seal(STOP_TYPE, Stop(**{**fields, **changes}))

    def receive(self, place: str, payload: bytes) -> None:
        topic = TOPICS.get(place) or topics.directive(FLEET, place, MODEL)
        self.device.feed(events.Received(topic, payload))

    def obeys(self) -> None:
        """What the fleet asks for next is done: no attack cost the device its ears."""
        self.device.direct(self.authority.to_arm(B))
        self.device.live(60_000)
        assert self.device.running == B.digest, "the next good directive is not obeyed"

    def unmoved(self, before: object) -> None:
        """Nothing of what the device remembers has changed, and nothing was begun."""
        assert self.device.state.record == before, "a refused document left its trace"
        assert self.device.running == A.digest
        begun = (do.Fetch, do.Activate, do.Persist, do.Disable)
        assert not any(isinstance(effect, begun) for effect in self.device.performed)


def withstand(attack: Attack) -> None:
    """Carry an attack out; raises AssertionError if the device lets anything of it through."""
    scene = CoreScene()
    place, payload = attack.make(scene)
    before = scene.device.state.record
    scene.receive(place, payload)
    assert scene.device.refusals() == [attack.reason], f"{attack}: {scene.device.refusals()}"
    scene.unmoved(before)
    told = scene.device.progress[-1].refusals
    assert [refusal.reason for refusal in told] == [attack.reason], "the server is not told"
    scene.obeys()

"""Guards from a root that nobody checked, and from the way back to a revoked release."""

from __future__ import annotations

from typing import Any

import msgspec

from device_agent.core import effects as do
from device_agent.core import events
from fleet_contract import codec, limits, topics
from fleet_contract.errors import Reason
from fleet_contract.messages.progress import Phase
from tests.device_agent.core.toy_device import FLEET, MODEL, A, B

ROOT = topics.root(FLEET)


def revoke(device: Any, authority: Any, floor: int) -> None:
    authority.generation += 1
    fresh = msgspec.structs.replace(authority.keyset(), release_floors={MODEL: floor})
    device.feed(events.KeysetFetched(codec.encode_json(fresh)))


def test_root_is_believed_by_the_core(on_a: Any) -> None:
    keyset = on_a.state.record.keyset
    on_a.feed(events.Received(ROOT, b"whatever it is"))
    assert on_a.effects_of(do.TakeRoot) == [do.TakeRoot(b"whatever it is")]
    assert on_a.state.record.keyset == keyset and on_a.refusals() == []
    on_a.feed(events.RootRefused(Reason.BAD_SIGNATURE, "signed by nobody"))
    assert on_a.refusals() == [Reason.BAD_SIGNATURE]
    assert on_a.progress[-1].refusals[0].topic == ROOT


def test_endless_root(on_a: Any) -> None:
    on_a.feed(events.Received(ROOT, b"x" * (limits.ROOT_BYTES + 1)))
    assert on_a.effects_of(do.TakeRoot) == []
    assert on_a.refusals() == [Reason.TOO_LARGE]


def test_new_root_changes_nothing_else(on_a: Any) -> None:
    on_a.feed(events.RootTaken())
    assert on_a.effects_of(do.FetchKeyset) == [do.FetchKeyset()]


def test_root_that_is_not_asked_for(on_a: Any) -> None:
    on_a.performed.clear()
    on_a.feed(events.Disconnected())
    on_a.connect()
    assert any(ROOT in effect.filters for effect in on_a.effects_of(do.Subscribe))


def test_running_release_is_revoked(on_a: Any, authority: Any) -> None:
    revoke(on_a, authority, 1_000)
    assert on_a.running == A.digest


def test_way_back_to_a_revoked_release(on_a: Any, authority: Any) -> None:
    on_a.direct(authority.to_arm(B))
    assert on_a.running == B.digest
    held = on_a.state.record.models[MODEL].admitted
    counters = {item.ref.digest: item.release_counter for item in held}
    revoke(on_a, authority, counters[A.digest] + 1)
    on_a.direct(authority.directive(default=A))
    assert on_a.running == B.digest
    assert (on_a.phase, on_a.reason) == (Phase.FAILED, Reason.REVOKED_RELEASE)
    sent = len(on_a.performed)
    on_a.wait(60_000)
    assert not [e for e in on_a.performed[sent:] if isinstance(e, do.Activate | do.Fetch)]

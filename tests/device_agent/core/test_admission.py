"""Control documents that must not be believed, and what the server learns of them."""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_agent.core import effects as do
from device_agent.core import events
from fleet_contract import codec
from fleet_contract.errors import Reason
from fleet_contract.trust.directive import ReleaseRef

B = ReleaseRef(f"manifests/digits/{'b' * 64}.json", "b" * 64)
TOPIC = "fleet/v1/home/cohort/lab/digits"


def refused(device: Any, payload: bytes, topic: str = TOPIC) -> list[Reason]:
    before = device.running
    device.feed(events.Received(topic, payload))
    assert device.running == before, "a refused document changes nothing"
    return list(device.refusals())


def test_tampered_directive(on_a: Any, authority: Any) -> None:
    payload = bytearray(authority.to_arm(B))
    place = payload.index(b'"sig":"') + 9
    payload[place] = ord("A") if payload[place] != ord("A") else ord("B")
    assert refused(on_a, bytes(payload)) == [Reason.BAD_SIGNATURE]


def test_unsigned_directive(on_a: Any) -> None:
    assert refused(on_a, b'{"payload":"","payloadType":"x","signatures":[]}') == [Reason.MALFORMED]


def test_replayed_directive(on_b: Any, authority: Any) -> None:
    old = authority.directive(epoch=authority.epoch - 1)
    assert refused(on_b, old) == [Reason.OLD_EPOCH]


def test_two_directives_of_one_epoch(on_a: Any, authority: Any) -> None:
    assert refused(on_a, authority.to_arm(B, epoch=authority.epoch)) == [Reason.EQUIVOCATION]


def test_expired_directive(on_a: Any, authority: Any) -> None:
    late = authority.to_arm(B, expires_ms=on_a.now_ms)
    assert refused(on_a, late) == [Reason.EXPIRED]


def test_clock_set_back_does_not_revive_an_expired_directive(on_a: Any, authority: Any) -> None:
    later = on_a.now_ms + 10_000
    on_a.direct(authority.directive(issued_ms=later))
    expired = authority.to_arm(B, expires_ms=later - 1)
    on_a.now_ms -= 3_600_000
    assert refused(on_a, expired) == [Reason.EXPIRED]


def test_directive_for_somebody_else(on_a: Any, authority: Any) -> None:
    assert refused(on_a, authority.to_arm(B, cohort="other")) == [Reason.WRONG_AUDIENCE]
    topic = "fleet/v1/home/cohort/other/digits"
    assert Reason.WRONG_AUDIENCE in refused(on_a, authority.to_arm(B, cohort="other"), topic)


def test_directive_older_than_the_assignment_allows(device: Any, authority: Any) -> None:
    old = authority.directive()
    minimum = {"digits": authority.epoch + 1}
    device.assign(authority.assignment(minimum_epochs=minimum))
    assert refused(device, old) == [Reason.OLD_EPOCH]


def test_cleared_topic_takes_nothing_away(on_a: Any) -> None:
    assert refused(on_a, b"") == []


@pytest.mark.parametrize("payload", [b"\x00", b"{}", b"[" * 100_000, b"\xff" * 200_000])
def test_garbage_from_the_broker(on_a: Any, payload: bytes) -> None:
    assert refused(on_a, payload)[0] in (Reason.MALFORMED, Reason.TOO_LARGE)


def test_refusal_is_reported_until_acknowledged(on_a: Any) -> None:
    refused(on_a, b"{}")
    assert on_a.progress[-1].refusals[0].reason is Reason.MALFORMED
    sent = len(on_a.progress)
    on_a.wait(5_000)
    assert len(on_a.progress) == sent + 1, "not acknowledged: said again"
    on_a.acknowledge()
    assert on_a.refusals() == []
    sent = len(on_a.progress)
    on_a.wait(60_000)
    assert len(on_a.progress) == sent, "acknowledged: silence"


def test_unknown_key_parks_the_directive_until_the_keyset_is_fresh(
    on_a: Any, authority: Any
) -> None:
    authority.director = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
    assert refused(on_a, authority.to_arm(B)) == [Reason.UNKNOWN_KEY]
    assert on_a.effects_of(do.FetchKeyset) == [do.FetchKeyset()]
    refused(on_a, authority.to_arm(B))
    assert len(on_a.effects_of(do.FetchKeyset)) == 1, "asked for at most every ten seconds"
    on_a.feed(events.KeysetFetched(codec.encode_json(authority.keyset())))
    assert on_a.running == B.digest


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fleet": "other"}, Reason.WRONG_AUDIENCE),
        ({"generation": 0}, Reason.OLD_GENERATION),
        ({"directors": [{}]}, Reason.MALFORMED),
    ],
)
def test_keyset_that_falls_behind_or_is_not_ours(
    on_a: Any, authority: Any, changes: dict[str, Any], reason: Reason
) -> None:
    before = on_a.state.record.keyset
    document = {**json.loads(codec.encode_json(authority.keyset())), **changes}
    on_a.feed(events.KeysetFetched(json.dumps(document).encode()))
    assert on_a.state.record.keyset == before
    assert on_a.refusals() == [reason]

"""One test per numbered check, and that they come in this order: of two faults the earlier one is
reported. Every attack on a control document is named here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_contract import codec, limits
from fleet_contract.errors import Reason, Refused
from fleet_contract.trust import checks
from fleet_contract.trust.checks import Acceptance, Accepted, Audience
from fleet_contract.trust.directive import (
    ASSIGNMENT_TYPE,
    DIRECTIVE_TYPE,
    STOP_TYPE,
    Arm,
    Assignment,
    Directive,
    ReleaseRef,
    Stop,
)
from fleet_contract.trust.keyset import Keyset

HOME = Audience("home", "lab", "digits")
Seal = Callable[..., bytes]


@pytest.fixture(scope="module")
def check(keyset: Keyset) -> Callable[..., Accepted[Directive]]:
    def call(data: bytes, **changes: Any) -> Accepted[Directive]:
        arguments: dict[str, Any] = {
            "keyset": keyset,
            "audience": HOME,
            "held": None,
            "minimum_epoch": 0,
            "now_ms": 2_000,
        }
        return checks.check_directive(data, **(arguments | changes))

    return call


def refusal(call: Callable[[], object]) -> Reason:
    with pytest.raises(Refused) as caught:
        call()
    assert caught.value.detail
    return caught.value.reason


def break_signature(data: bytes) -> bytes:
    document = json.loads(data)
    sig = bytearray(base64.b64decode(document["signatures"][0]["sig"]))
    sig[0] ^= 1
    document["signatures"][0]["sig"] = base64.b64encode(sig).decode()
    return json.dumps(document).encode()


def test_good_directive_is_accepted(check: Any, seal_directive: Seal, directive: Directive) -> None:
    accepted = check(seal_directive())
    assert accepted.document == directive
    assert not accepted.repeated
    assert (accepted.acceptance.generation, accepted.acceptance.epoch) == (3, 1_000)


def test_1_size(check: Any, seal_directive: Seal) -> None:
    padded = seal_directive() + b" " * limits.ENVELOPE_BYTES
    assert refusal(lambda: check(padded)) is Reason.TOO_LARGE


def test_2_key_id(check: Any, seal_directive: Seal, make_key: Any) -> None:
    assert refusal(lambda: check(seal_directive(make_key(9)))) is Reason.UNKNOWN_KEY


def test_2_root_key_is_no_director(check: Any, seal_directive: Seal, root: Any) -> None:
    assert refusal(lambda: check(seal_directive(root))) is Reason.UNKNOWN_KEY


def test_2_next_director_key_is_believed(check: Any, seal_directive: Seal, make_key: Any) -> None:
    assert not check(seal_directive(make_key(4))).repeated


def test_3_signature(check: Any, seal_directive: Seal) -> None:
    assert refusal(lambda: check(break_signature(seal_directive()))) is Reason.BAD_SIGNATURE


def test_3_signature_moved_from_another_directive(check: Any, seal_directive: Seal) -> None:
    one, other = json.loads(seal_directive()), json.loads(seal_directive(epoch=1_001))
    one["signatures"] = other["signatures"]
    assert refusal(lambda: check(json.dumps(one).encode())) is Reason.BAD_SIGNATURE


def test_3_unsigned(check: Any, seal_directive: Seal) -> None:
    document = json.loads(seal_directive())
    document["signatures"] = []
    assert refusal(lambda: check(json.dumps(document).encode())) is Reason.UNKNOWN_KEY


def test_3_assignment_does_not_pass_for_a_directive(
    check: Any, director: Any, directive: Directive
) -> None:
    payload = codec.encode_json(directive)
    data = director.seal(ASSIGNMENT_TYPE, payload)
    assert refusal(lambda: check(data)) is Reason.MALFORMED
    renamed = json.loads(data)
    renamed["payloadType"] = DIRECTIVE_TYPE
    assert refusal(lambda: check(json.dumps(renamed).encode())) is Reason.BAD_SIGNATURE


@pytest.mark.parametrize(
    "changes", [{"fleet": "work"}, {"cohort": "attic"}, {"model": "faces"}], ids=str
)
def test_4_audience(check: Any, seal_directive: Seal, changes: dict[str, str]) -> None:
    assert refusal(lambda: check(seal_directive(**changes))) is Reason.WRONG_AUDIENCE


def test_5_old_generation(check: Any, seal_directive: Seal) -> None:
    assert refusal(lambda: check(seal_directive(generation=2))) is Reason.OLD_GENERATION


def test_5_generation_that_no_keyset_confirms(check: Any, seal_directive: Seal) -> None:
    data = seal_directive(generation=4)
    assert refusal(lambda: check(data)) is Reason.UNCONFIRMED_GENERATION


def test_5_generation_below_the_one_accepted(check: Any, seal_directive: Seal) -> None:
    held = Acceptance(4, 5, "00" * 32)
    assert refusal(lambda: check(seal_directive(), held=held)) is Reason.OLD_GENERATION


def test_6_replayed_older_epoch(check: Any, seal_directive: Seal) -> None:
    held = check(seal_directive(epoch=1_001)).acceptance
    assert refusal(lambda: check(seal_directive(), held=held)) is Reason.OLD_EPOCH


def test_6_epoch_below_the_minimum_of_the_assignment(check: Any, seal_directive: Seal) -> None:
    assert refusal(lambda: check(seal_directive(), minimum_epoch=1_001)) is Reason.OLD_EPOCH
    assert not check(seal_directive(), minimum_epoch=1_000).repeated


def test_6_epoch_below_the_floor_of_the_keyset(
    check: Any, seal_directive: Seal, keyset: Keyset
) -> None:
    raised = msgspec.structs.replace(keyset, epoch_floor=1_001)
    assert refusal(lambda: check(seal_directive(), keyset=raised)) is Reason.OLD_EPOCH


def test_6_new_generation_starts_its_own_epochs(check: Any, seal_directive: Seal) -> None:
    held = Acceptance(2, 5_000, "00" * 32)
    assert check(seal_directive(), held=held).acceptance.epoch == 1_000


def test_6_equivocation(check: Any, seal_directive: Seal) -> None:
    held = check(seal_directive()).acceptance
    assert refusal(lambda: check(seal_directive(retry=1), held=held)) is Reason.EQUIVOCATION


def test_7_expired(check: Any, seal_directive: Seal) -> None:
    assert refusal(lambda: check(seal_directive(), now_ms=9_000)) is Reason.EXPIRED
    assert not check(seal_directive(), now_ms=8_999).repeated


def test_7_expiry_is_not_checked_again_when_repeated(check: Any, seal_directive: Seal) -> None:
    held = check(seal_directive()).acceptance
    again = check(seal_directive(), held=held, now_ms=1_000_000)
    assert again.repeated
    assert again.acceptance == held


def test_checks_come_in_order(
    check: Any, seal_directive: Seal, make_key: Any, keyset: Keyset
) -> None:
    """Each document has the fault of its check and of all later ones."""
    held = Acceptance(3, 2_000, "00" * 32)
    late: dict[str, Any] = {"held": held, "now_ms": 10_000}
    faults: dict[str, Any] = {}
    assert refusal(lambda: check(seal_directive(epoch=3_000), **late)) is Reason.EXPIRED
    assert refusal(lambda: check(seal_directive(epoch=2_000), **late)) is Reason.EQUIVOCATION
    assert refusal(lambda: check(seal_directive(), **late)) is Reason.OLD_EPOCH
    faults["generation"] = 4
    data = seal_directive(**faults)
    assert refusal(lambda: check(data, **late)) is Reason.UNCONFIRMED_GENERATION
    faults["cohort"] = "attic"
    data = seal_directive(**faults)
    assert refusal(lambda: check(data, **late)) is Reason.WRONG_AUDIENCE
    assert refusal(lambda: check(break_signature(data), **late)) is Reason.BAD_SIGNATURE
    data = break_signature(seal_directive(make_key(9), **faults))
    assert refusal(lambda: check(data, **late)) is Reason.UNKNOWN_KEY
    data += b" " * limits.ENVELOPE_BYTES
    assert refusal(lambda: check(data, **late)) is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "ranges",
    [
        [("8", "7")],
        [("0", "7"), ("7", "f")],
        [("8", "f"), ("0", "7")],
        [("0", "f"), ("0", "f")],
    ],
    ids=str,
)
def test_arms_that_overlap_or_run_backwards(
    check: Any, seal_directive: Seal, ranges: list[tuple[str, str]]
) -> None:
    arms = [Arm("a", first * 16, last * 16, None, 1_000) for first, last in ranges]
    assert refusal(lambda: check(seal_directive(arms=arms))) is Reason.MALFORMED


def test_too_many_arms(check: Any, seal_directive: Seal) -> None:
    arms = [Arm("a", f"{i:016x}", f"{i:016x}", None, 1) for i in range(limits.ARMS + 1)]
    assert refusal(lambda: check(seal_directive(arms=arms))) is Reason.MALFORMED
    assert not check(seal_directive(arms=arms[:-1])).repeated


@given(payload=st.binary(max_size=300))
def test_signed_rubbish_is_refused(check: Any, director: Any, payload: bytes) -> None:
    data = director.seal(DIRECTIVE_TYPE, payload)
    assert refusal(lambda: check(data)) is Reason.MALFORMED


ASSIGNMENT = Assignment(
    "home",
    "device-1",
    3,
    500,
    1,
    "lab",
    {"site": "a"},
    {"digits": ReleaseRef("m", "ab" * 32)},
    {"digits": ["cd" * 32]},
    {"digits": 400},
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"fleet": "work"}, Reason.WRONG_AUDIENCE),
        ({"device": "device-2"}, Reason.WRONG_AUDIENCE),
        ({"device": "device-2", "generation": 2}, Reason.WRONG_AUDIENCE),
        ({"generation": 2, "epoch": 1}, Reason.OLD_GENERATION),
        ({"generation": 4, "epoch": 1}, Reason.UNCONFIRMED_GENERATION),
        ({"epoch": 99}, Reason.OLD_EPOCH),
        ({"epoch": 399}, Reason.OLD_EPOCH),
        ({"epoch": 400}, Reason.EQUIVOCATION),
    ],
    ids=str,
)
def test_assignment(
    director: Any, keyset: Keyset, changes: dict[str, Any], reason: Reason | None
) -> None:
    document = msgspec.structs.replace(ASSIGNMENT, **changes)
    data = director.seal(ASSIGNMENT_TYPE, codec.encode_json(document))
    held = Acceptance(3, 400, "00" * 32)

    def call(held: Acceptance = held) -> Accepted[Assignment]:
        return checks.check_assignment(
            data, keyset=keyset, fleet="home", device="device-1", held=held
        )

    if reason is not None:
        assert refusal(call) is reason
        return
    accepted = call()
    assert accepted.document == ASSIGNMENT
    assert not accepted.repeated
    assert call(accepted.acceptance).repeated


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"fleet": "work", "epoch": 1}, Reason.WRONG_AUDIENCE),
        ({"generation": 2, "epoch": 1}, Reason.OLD_GENERATION),
        ({"epoch": 99}, Reason.OLD_EPOCH),
        ({"epoch": 399}, Reason.OLD_EPOCH),
        ({"epoch": 400}, Reason.EQUIVOCATION),
    ],
    ids=str,
)
def test_stop(
    director: Any, keyset: Keyset, changes: dict[str, Any], reason: Reason | None
) -> None:
    document = msgspec.structs.replace(Stop("home", 3, 500, 1, True, "smoke"), **changes)
    data = director.seal(STOP_TYPE, codec.encode_json(document))
    held = Acceptance(3, 400, "00" * 32)

    def call(held: Acceptance = held) -> Accepted[Stop]:
        return checks.check_stop(data, keyset=keyset, fleet="home", held=held)

    if reason is not None:
        assert refusal(call) is reason
        return
    accepted = call()
    assert accepted.document.stopped
    assert call(accepted.acceptance).repeated

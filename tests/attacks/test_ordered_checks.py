"""Every attack on a control document against the agent's core, and those that need a history.

Fast, so that tests/attacks/test_every_check_counts.py can repeat them with each check disabled.
"""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from device_agent.core import effects as do
from device_agent.core import events
from device_agent.core.state import State
from fleet_contract import codec
from fleet_contract.errors import Reason
from fleet_contract.trust.checks import Acceptance
from fleet_contract.trust.keyset import Keyset, PublicKey
from tests.attacks.core_scene import CoreScene, withstand
from tests.attacks.documents import ATTACKS, Attack
from tests.device_agent.core.toy_device import (
    COHORT,
    FLEET,
    MODEL,
    START_MS,
    A,
    Authority,
    B,
    Killed,
    connected,
)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_document_that_must_not_be_obeyed(attack: Attack) -> None:
    withstand(attack)


def test_good_documents_are_obeyed() -> None:
    """Without this, a device that refuses everything would withstand every attack."""
    scene = CoreScene()
    scene.obeys()
    scene.receive("stop", scene.stop())
    scene.receive("assignment", scene.assignment())
    assert scene.device.refusals() == []
    assert scene.device.state.record.stop is not None
    assert scene.device.state.record.stop.stopped


def give_keyset(scene: CoreScene, **changes: Any) -> None:
    keyset = replace(scene.device.state.record.keyset, **changes)
    scene.device.feed(events.KeysetFetched(codec.encode_json(keyset)))


# -- 2 key id ----------------------------------------------------------------------------------


def test_key_that_a_new_generation_no_longer_lists() -> None:
    """Expired key: once the keyset has gone on, what the old director signs is worth nothing."""
    scene = CoreScene()
    late = scene.directive()
    scene.authority.director = Ed25519PrivateKey.from_private_bytes(b"\x03" * 32)
    scene.authority.generation = 2
    scene.device.feed(events.KeysetFetched(codec.encode_json(scene.authority.keyset())))
    scene.receive("directive", late)
    assert scene.device.refusals() == [Reason.UNKNOWN_KEY]
    assert scene.device.running == A.digest
    scene.obeys()


def test_key_that_lies_about_its_name() -> None:
    scene = CoreScene()
    (key,) = scene.device.state.record.keyset.directors
    thief = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32).public_key().public_bytes_raw()
    before = scene.device.state.record.keyset
    give_keyset(scene, directors=[PublicKey(key.keyid, thief.hex())])
    assert scene.device.state.record.keyset == before
    assert scene.device.refusals() == [Reason.MALFORMED]
    scene.obeys()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fleet": "factory"}, Reason.WRONG_AUDIENCE),
        ({"generation": 0}, Reason.OLD_GENERATION),
        ({"epoch_floor": 49}, Reason.OLD_EPOCH),
    ],
    ids=str,
)
def test_keyset_that_falls_behind(changes: dict[str, Any], reason: Reason) -> None:
    scene = CoreScene()
    give_keyset(scene, epoch_floor=50)
    before = scene.device.state.record.keyset
    assert before.epoch_floor == 50
    give_keyset(scene, **changes)
    assert scene.device.state.record.keyset == before
    assert scene.device.refusals() == [reason]
    scene.obeys()


# -- 5 generation ------------------------------------------------------------------------------


def test_old_generation_where_nothing_was_accepted_before() -> None:
    authority = Authority(generation=2)
    device = connected(authority)
    device.direct(authority.directive(generation=1))
    assert device.refusals() == [Reason.OLD_GENERATION]
    assert device.running == ""
    device.direct(authority.directive())
    device.live(60_000)
    assert device.running == A.digest


def test_generation_below_the_one_accepted() -> None:
    """A device whose keyset went back with its disk still knows what it accepted."""
    scene = CoreScene()
    record = scene.device.state.record
    held = {**record.acceptances, f"{COHORT}/{MODEL}": Acceptance(2, 1, "00" * 32)}
    scene.device.state = State(replace(record, acceptances=held), scene.device.state.live)
    scene.receive("directive", scene.directive())
    assert scene.device.refusals() == [Reason.OLD_GENERATION]
    scene.authority.generation = 2
    scene.device.feed(events.KeysetFetched(codec.encode_json(scene.authority.keyset())))
    scene.obeys()


# -- 6 epoch -----------------------------------------------------------------------------------


def test_epoch_below_the_floor_of_the_keyset() -> None:
    scene = CoreScene()
    give_keyset(scene, epoch_floor=scene.authority.epoch + 50)
    for place in ("directive", "assignment", "stop"):
        scene.receive(place, getattr(scene, place)())
    found = [refusal.topic.rpartition("/")[2] for _, refusal in scene.device.state.live.refusals]
    assert scene.device.refusals() == [Reason.OLD_EPOCH] * 3, found
    scene.authority.epoch += 50
    scene.obeys()


def test_epoch_below_the_minimum_of_the_assignment() -> None:
    """A newcomer holds no acceptance: its assignment says what is too old for it."""
    authority = Authority()
    device = connected(authority)
    old = authority.directive()
    device.assign(authority.assignment(minimum_epochs={MODEL: authority.epoch + 1}))
    device.direct(old)
    assert device.refusals() == [Reason.OLD_EPOCH]
    assert device.running == ""
    device.direct(authority.directive())
    device.live(60_000)
    assert device.running == A.digest


# -- 7 expiry and time -------------------------------------------------------------------------


def test_clock_set_back_revives_an_expired_directive() -> None:
    scene = CoreScene()
    later_ms = START_MS + 7_200_000
    scene.device.direct(scene.authority.directive(issued_ms=later_ms))
    scene.device.now_ms = START_MS - 86_400_000
    scene.receive("directive", scene.directive(expires_ms=later_ms - 1))
    assert scene.device.refusals() == [Reason.EXPIRED]
    assert scene.device.running == A.digest
    scene.obeys()


def test_directive_that_expires_while_it_is_held_up() -> None:
    """Accepted in time, but not begun in time: expiry gates every new transition."""
    scene = CoreScene()
    scene.receive("stop", scene.stop())
    scene.device.direct(scene.directive(expires_ms=scene.device.now_ms + 1_000))
    scene.device.wait(2_000)
    scene.receive("stop", scene.stop(stopped=False))
    scene.device.live(60_000)
    assert scene.device.running == A.digest
    assert not scene.device.effects_of(do.Fetch)
    assert scene.device.reason is Reason.EXPIRED
    scene.obeys()


# -- 8 persist, 9 act --------------------------------------------------------------------------


@pytest.mark.parametrize("performed", [1, 2, 3])
def test_killed_between_acceptance_and_action(performed: int) -> None:
    """What was begun by a directive must outlive the process, or an older one could come back."""
    scene = CoreScene()
    device = scene.device
    newest = scene.directive()
    device.kill_after = performed
    with pytest.raises(Killed):
        device.direct(newest)
    device.boot()
    device.retained["fleet/v1/home/cohort/lab/digits"] = scene.newest
    device.connect()
    assert device.refusals() == [Reason.OLD_EPOCH], "the older directive was not refused"
    device.retained["fleet/v1/home/cohort/lab/digits"] = newest
    device.direct(newest)
    device.live(60_000)
    assert device.running == B.digest


def test_record_is_stored_before_anything_is_done() -> None:
    scene = CoreScene()
    scene.device.direct(scene.directive())
    first = scene.device.performed[0]
    assert isinstance(first, do.Persist)
    held = first.record.acceptances[f"{COHORT}/{MODEL}"]
    assert held.epoch == scene.authority.epoch


def test_keyset_of_the_tests_is_the_fleet_s() -> None:
    keyset = CoreScene().device.state.record.keyset
    assert isinstance(keyset, Keyset)
    assert (keyset.fleet, keyset.generation) == (FLEET, 1)

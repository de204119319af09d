"""Control documents that no device may obey, each with the check that has to stop it.

One table for two audiences: the tests of this folder put them in front of the real agent, and
tests/attacks/test_ordered_checks.py drives them through the agent's core, fast enough to be run
against every mutant of the checks. Whoever signs here holds the director's key: what has to hold
is the device's own check, not the secrecy of a key.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet_contract import codec, limits
from fleet_contract.errors import Reason
from fleet_contract.trust import envelope
from fleet_contract.trust.directive import DIRECTIVE_TYPE, STOP_TYPE

STRANGER = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
ELSEWHERE = "elsewhere"
"""A cohort that no device of these tests is in."""


class Scene(Protocol):
    """What an attacker inside the fleet sees and can have signed.

    ``newest`` is the directive that the device obeys, ``older`` one that it obeyed before. The
    documents are good ones of a later epoch that ask for another release, but for the changes.
    """

    @property
    def newest(self) -> bytes: ...
    @property
    def older(self) -> bytes: ...
    @property
    def newest_epoch(self) -> int: ...
    @property
    def generation(self) -> int: ...
    def directive(self, **changes: Any) -> bytes: ...
    def assignment(self, **changes: Any) -> bytes: ...
    def stop(self, **changes: Any) -> bytes: ...


Made = tuple[str, bytes]
"""Where it is published (``directive``, ``assignment``, ``stop`` or a cohort), and what."""


@dataclass(frozen=True)
class Attack:
    """``check`` is the number of the ordered list, ``reason`` what the device must say."""

    check: int
    name: str
    reason: Reason
    make: Callable[[Scene], Made]

    def __str__(self) -> str:
        return f"{self.check} {self.name}"


def of(*checks: int) -> list[Attack]:
    """Return the attacks that these checks have to stop."""
    return [attack for attack in ATTACKS if attack.check in checks]


def _directive(**changes: Any) -> Callable[[Scene], Made]:
    return lambda scene: ("directive", scene.directive(**changes))


def _assignment(**changes: Any) -> Callable[[Scene], Made]:
    return lambda scene: ("assignment", scene.assignment(**changes))


def _stop(**changes: Any) -> Callable[[Scene], Made]:
    return lambda scene: ("stop", scene.stop(**changes))


def _generation(place: str, step: int) -> Callable[[Scene], Made]:
    def make(scene: Scene) -> Made:
        generation = scene.generation + step
        return place, getattr(scene, place)(generation=generation)

    return make


def _padded(scene: Scene) -> Made:
    return "directive", scene.directive() + b" " * limits.ENVELOPE_BYTES


def _by_a_stranger(scene: Scene) -> Made:
    payload = base64.b64decode(json.loads(scene.directive())["payload"])
    name = envelope.key_id(STRANGER.public_key().public_bytes_raw())
    return "directive", envelope.seal(DIRECTIVE_TYPE, payload, {name: STRANGER.sign})


def _unsigned(scene: Scene) -> Made:
    sealed = json.loads(scene.directive())
    return "directive", json.dumps({**sealed, "signatures": []}).encode()


def _stranger_under_the_director_s_name(scene: Scene) -> Made:
    sealed = json.loads(scene.directive())
    payload = base64.b64decode(sealed["payload"])
    signature = STRANGER.sign(envelope.pre_authentication_encoding(DIRECTIVE_TYPE, payload))
    sealed["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    return "directive", json.dumps(sealed).encode()


def _signature_of_another(scene: Scene) -> Made:
    sealed = json.loads(scene.directive())
    return "directive", json.dumps(
        {**sealed, "signatures": json.loads(scene.newest)["signatures"]}
    ).encode()


def _changed_after_signing(scene: Scene) -> Made:
    sealed = json.loads(scene.directive())
    payload = {**json.loads(base64.b64decode(sealed["payload"])), "retry": 77}
    sealed["payload"] = base64.b64encode(codec.encode_json(payload)).decode()
    return "directive", json.dumps(sealed).encode()


def _stop_as_a_directive(scene: Scene) -> Made:
    return "directive", scene.stop()


def _directive_that_could_be_a_stop(scene: Scene) -> Made:
    """Signed as a directive, it has every field of a stop, and is renamed to be one."""
    sealed = json.loads(scene.directive(also={"stopped": True, "reason": "none"}))
    return "stop", json.dumps({**sealed, "payloadType": STOP_TYPE}).encode()


def _on_another_cohort_s_topic(scene: Scene) -> Made:
    return ELSEWHERE, scene.directive(cohort=ELSEWHERE)


def _replayed(scene: Scene) -> Made:
    return "directive", scene.older


def _equivocation(scene: Scene) -> Made:
    return "directive", scene.directive(epoch=scene.newest_epoch)


ATTACKS = [
    Attack(1, "padded beyond all bounds", Reason.TOO_LARGE, _padded),
    Attack(2, "signed by a stranger", Reason.UNKNOWN_KEY, _by_a_stranger),
    Attack(2, "signed by nobody", Reason.UNKNOWN_KEY, _unsigned),
    Attack(2, "stop passed off as a directive", Reason.MALFORMED, _stop_as_a_directive),
    Attack(
        3,
        "stranger under the director's name",
        Reason.BAD_SIGNATURE,
        _stranger_under_the_director_s_name,
    ),
    Attack(3, "signature of another directive", Reason.BAD_SIGNATURE, _signature_of_another),
    Attack(3, "changed after signing", Reason.BAD_SIGNATURE, _changed_after_signing),
    Attack(3, "directive renamed to a stop", Reason.BAD_SIGNATURE, _directive_that_could_be_a_stop),
    Attack(4, "directive of another fleet", Reason.WRONG_AUDIENCE, _directive(fleet="factory")),
    Attack(4, "directive of another cohort", Reason.WRONG_AUDIENCE, _directive(cohort="field")),
    Attack(4, "directive of another model", Reason.WRONG_AUDIENCE, _directive(model="detector")),
    Attack(4, "topic of another cohort", Reason.WRONG_AUDIENCE, _on_another_cohort_s_topic),
    Attack(4, "assignment of another fleet", Reason.WRONG_AUDIENCE, _assignment(fleet="factory")),
    Attack(
        4, "assignment of another device", Reason.WRONG_AUDIENCE, _assignment(device="neighbour")
    ),
    Attack(4, "stop of another fleet", Reason.WRONG_AUDIENCE, _stop(fleet="factory")),
    Attack(
        5, "directive of a generation left", Reason.OLD_GENERATION, _generation("directive", -1)
    ),
    Attack(
        5, "assignment of a generation left", Reason.OLD_GENERATION, _generation("assignment", -1)
    ),
    Attack(5, "stop of a generation left", Reason.OLD_GENERATION, _generation("stop", -1)),
    Attack(
        5,
        "directive of a generation that no keyset confirms",
        Reason.UNCONFIRMED_GENERATION,
        _generation("directive", 1),
    ),
    Attack(
        5,
        "assignment of a generation that no keyset confirms",
        Reason.UNCONFIRMED_GENERATION,
        _generation("assignment", 1),
    ),
    Attack(
        5,
        "stop of a generation that no keyset confirms",
        Reason.UNCONFIRMED_GENERATION,
        _generation("stop", 1),
    ),
    Attack(6, "older directive replayed", Reason.OLD_EPOCH, _replayed),
    Attack(6, "older assignment replayed", Reason.OLD_EPOCH, _assignment(epoch=1)),
    Attack(6, "older stop replayed", Reason.OLD_EPOCH, _stop(epoch=1)),
    Attack(6, "two directives of one epoch", Reason.EQUIVOCATION, _equivocation),
    Attack(7, "directive held back until it expired", Reason.EXPIRED, _directive(expires_ms=2)),
]

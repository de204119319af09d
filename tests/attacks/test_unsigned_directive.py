"""Nobody runs anything on a device without the fleet's director key."""

from __future__ import annotations

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet_contract import limits, topics
from fleet_contract.trust.directive import ASSIGNMENT_TYPE, STOP_TYPE
from fleet_contract.trust.envelope import Envelope
from tests.attacks.battlefield import ASSIGNMENT_TOPIC, Battlefield
from tests.attacks.insider import FLEET

pytestmark = pytest.mark.slow
STRANGER = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)


def test_directive_without_a_signature(attacked: Battlefield) -> None:
    signed = msgspec.json.decode(attacked.signed(), type=Envelope)
    unsigned = msgspec.json.encode(msgspec.structs.replace(signed, signatures=[]))
    attacked.expect_refusal("unknown_key", unsigned)


def test_directive_signed_by_a_stranger(attacked: Battlefield) -> None:
    attacked.expect_refusal("unknown_key", attacked.seal(attacked.directive(), STRANGER))


def test_assignment_and_stop_signed_by_a_stranger(attacked: Battlefield) -> None:
    document = attacked.directive()
    assignment = attacked.seal(document, STRANGER, kind=ASSIGNMENT_TYPE)
    attacked.expect_refusal("unknown_key", assignment, ASSIGNMENT_TOPIC)
    stop = attacked.seal(document, STRANGER, kind=STOP_TYPE)
    attacked.expect_refusal("unknown_key", stop, topics.stop(FLEET))


@pytest.mark.parametrize("payload", [b"nonsense", b"{}", b"\xff\xfe\x00", b"[" * 50_000])
def test_directive_that_is_no_document(attacked: Battlefield, payload: bytes) -> None:
    attacked.expect_refusal("malformed", payload)


def test_directive_larger_than_any_may_be(attacked: Battlefield) -> None:
    attacked.expect_refusal("too_large", b" " * (limits.ENVELOPE_BYTES + 1))

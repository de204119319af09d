"""A signature holds for the bytes it was made for, and for no others."""

from __future__ import annotations

import base64

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleet_contract import codec
from fleet_contract.trust.directive import STOP_TYPE, Stop
from fleet_contract.trust.envelope import Envelope
from tests.attacks.battlefield import Battlefield
from tests.attacks.insider import FLEET

pytestmark = pytest.mark.slow
STRANGER = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)


def test_release_exchanged_in_a_signed_directive(attacked: Battlefield) -> None:
    sealed = msgspec.json.decode(attacked.newest, type=Envelope)
    payload = base64.b64encode(codec.encode_json(attacked.directive())).decode()
    tampered = msgspec.structs.replace(sealed, payload=payload)
    attacked.expect_refusal("bad_signature", msgspec.json.encode(tampered))


def test_signature_of_a_stranger_under_the_director_s_name(attacked: Battlefield) -> None:
    real = msgspec.json.decode(attacked.newest, type=Envelope)
    forged = msgspec.json.decode(attacked.seal(attacked.directive(), STRANGER), type=Envelope)
    signature = msgspec.structs.replace(forged.signatures[0], keyid=real.signatures[0].keyid)
    forged = msgspec.structs.replace(forged, signatures=[signature])
    attacked.expect_refusal("bad_signature", msgspec.json.encode(forged))


def test_signed_stop_passed_off_as_a_directive(attacked: Battlefield) -> None:
    now_ms = attacked.directive().issued_ms
    stop = attacked.keyring.sign_stop(Stop(FLEET, 1, now_ms, now_ms, True, ""))
    attacked.expect_refusal("malformed", stop)
    assert STOP_TYPE.encode() in stop

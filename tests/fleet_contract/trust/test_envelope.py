"""Guards that nothing but the exact signed bytes passes an envelope."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_contract.errors import Reason, Refused
from fleet_contract.trust import envelope

TYPE = "application/vnd.edgefleet.directive.v1+json"
LIMIT = 10_000


def unseal(data: bytes, *keys: Any) -> bytes:
    known = {key.keyid: key.public for key in keys}
    return envelope.unseal(data, TYPE, known, limit_bytes=LIMIT)


def test_pre_authentication_encoding_is_that_of_the_dsse_protocol() -> None:
    # The example of the protocol's own description.
    encoded = envelope.pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


@given(payload=st.binary(max_size=1_000))
def test_round_trip(director: Any, payload: bytes) -> None:
    assert unseal(director.seal(TYPE, payload), director) == payload


@given(payload=st.binary(min_size=1, max_size=60), data=st.data())
def test_any_bit_flip_is_refused(director: Any, payload: bytes, data: st.DataObject) -> None:
    sealed = bytearray(director.seal(TYPE, payload))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Refused):
        unseal(bytes(sealed), director)


def test_every_bit_flip_of_one_envelope_is_refused(director: Any) -> None:
    sealed = director.seal(TYPE, b"{}")
    for bit in range(8 * len(sealed)):
        flipped = bytearray(sealed)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused):
            unseal(bytes(flipped), director)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused(director: Any, data: bytes) -> None:
    with pytest.raises(Refused):
        unseal(data, director)


@given(
    document=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["payload", "payloadType", "signatures", "keyid", "sig"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_refused(director: Any, document: object) -> None:
    with pytest.raises(Refused):
        unseal(json.dumps(document).encode(), director)


def test_one_of_two_signatures_is_enough(director: Any, make_key: Any) -> None:
    other = make_key(9)
    both = envelope.seal(TYPE, b"{}", {other.keyid: other.sign, director.keyid: director.sign})
    assert unseal(both, director) == b"{}"
    assert unseal(both, other) == b"{}"


def test_key_id_of_another_key_does_not_help(director: Any, make_key: Any) -> None:
    forged = envelope.seal(TYPE, b"{}", {director.keyid: make_key(9).sign})
    with pytest.raises(Refused, match="bad_signature"):
        unseal(forged, director)


def test_flood_of_signatures_is_refused_before_verifying(director: Any) -> None:
    document = json.loads(director.seal(TYPE, b"{}"))
    document["signatures"] *= envelope.SIGNATURES + 1
    with pytest.raises(Refused, match="more than"):
        unseal(json.dumps(document).encode(), director)


def test_size_comes_before_everything(director: Any) -> None:
    with pytest.raises(Refused) as caught:
        unseal(b"x" * (LIMIT + 1), director)
    assert caught.value.reason is Reason.TOO_LARGE


def test_loose_base64_is_refused(director: Any) -> None:
    document = json.loads(director.seal(TYPE, b"abcd"))
    assert base64.b64decode("YWJjZB==") == b"abcd", "the bits that no byte takes"
    document["payload"] = "YWJjZB=="
    with pytest.raises(Refused, match="base64"):
        unseal(json.dumps(document).encode(), director)


def test_deeply_nested_document_is_refused(director: Any) -> None:
    with pytest.raises(Refused):
        unseal(b'{"payload":' + b"[" * 5_000 + b"]" * 4_000 + b"}", director)

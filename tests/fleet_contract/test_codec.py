"""Guards that one value has one form, and that any bytes give a value or a refusal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_contract import codec, enrolment, limits
from fleet_contract.enrolment import EnrolmentAnswer, EnrolmentRequest, EnrolmentToken
from fleet_contract.errors import Reason, Refused
from fleet_contract.features import FeatureSchema
from fleet_contract.manifest import GoldenFile, Manifest, TensorData
from fleet_contract.messages.presence import Presence
from fleet_contract.messages.progress import Progress
from fleet_contract.messages.report import Ack, Report
from fleet_contract.trust.directive import Assignment, Directive, Stop
from fleet_contract.trust.keyset import Keyset

KINDS: list[type[Any]] = [
    *(Ack, Assignment, Directive, EnrolmentAnswer, EnrolmentRequest, FeatureSchema, GoldenFile),
    *(Keyset, Manifest, Presence, Progress, Report, Stop),
]
shape = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(
            st.sampled_from([*Report.__struct_fields__, *Progress.__struct_fields__, "x"]), inner
        )
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(
    data=st.binary(max_size=200) | shape.map(codec.encode_msgpack) | shape.map(codec.encode_json)
)
def test_any_bytes_give_a_value_or_a_refusal(kind: type[object], data: bytes) -> None:
    for decode in (codec.decode_json, codec.decode_msgpack):
        try:
            assert isinstance(decode(data, kind, limit_bytes=1_000_000), kind)
        except Refused as refused:
            assert refused.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"1" * 10_000,
        b'{"generation":' + b"9" * 5_000 + b"}",
        b"1e999",
        b'"\xff"',
        b'"\\ud800"',
        b"\x91" * 100_000,
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    ],
    ids=range(10),
)
def test_bombs_are_refused(data: bytes) -> None:
    for kind in KINDS:
        for decode in (codec.decode_json, codec.decode_msgpack):
            with pytest.raises(Refused):
                decode(data, kind, limit_bytes=1_000_000)


def test_size_is_checked_before_the_form() -> None:
    for decode in (codec.decode_json, codec.decode_msgpack):
        with pytest.raises(Refused) as caught:
            decode(b"\xc1" * 11, Report, limit_bytes=10)
        assert caught.value.reason is Reason.TOO_LARGE


def test_unknown_fields_of_a_newer_peer_are_ignored() -> None:
    newer = {"session": "00" * 8, "progress": 1, "windows": [], "colour": {"new": [1]}}
    ack = codec.decode_msgpack(codec.encode_msgpack(newer), Ack, limit_bytes=1_000)
    assert ack == Ack("00" * 8, 1, [])


def test_same_value_gives_the_same_bytes() -> None:
    one = {"b": 1, "a": {"d": 1, "c": 2}}
    other = {"a": {"c": 2, "d": 1}, "b": 1}
    assert codec.encode_json(one) == codec.encode_json(other) == b'{"a":{"c":2,"d":1},"b":1}'
    assert codec.encode_msgpack(one) == codec.encode_msgpack(other)


@given(data=st.binary(max_size=100))
def test_golden_file_round_trip(data: bytes) -> None:
    file = GoldenFile([TensorData("x", "float32", [1, 2], data)], [])
    encoded = codec.encode_msgpack(file)
    assert codec.decode_msgpack(encoded, GoldenFile, limit_bytes=1_000) == file


tokens = st.builds(
    EnrolmentToken,
    st.sampled_from(["http://127.0.0.1:8420", "https://fleet.example"]),
    st.just("home"),
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.binary(min_size=32, max_size=32).map(bytes.hex),
)


@given(token=tokens)
def test_token_survives_being_pasted(token: EnrolmentToken) -> None:
    word = enrolment.write_token(token)
    assert word.isascii()
    assert not set(word) & set(" /+=\n\"'&")
    assert enrolment.read_token(f"  {word}\n") == token


@given(text=st.text(max_size=200))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    with pytest.raises(Refused):
        enrolment.read_token(text)


def test_endless_token_is_refused() -> None:
    with pytest.raises(Refused) as caught:
        enrolment.read_token("A" * (enrolment.TOKEN_CHARACTERS + 1))
    assert caught.value.reason is Reason.TOO_LARGE
    assert limits.STATUS_BYTES > enrolment.TOKEN_CHARACTERS

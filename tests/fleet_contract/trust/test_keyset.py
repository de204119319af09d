"""Guards that a keyset never takes back what an earlier one said, and is of this fleet."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_contract import codec, limits
from fleet_contract.errors import Reason, Refused
from fleet_contract.trust.keyset import Keyset, PublicKey, read_keyset


def written(keyset: Keyset, **changes: Any) -> bytes:
    return codec.encode_json(msgspec.structs.replace(keyset, **changes))


def read(data: bytes, held: Keyset | None = None) -> Keyset:
    return read_keyset(data, fleet="home", held=held)


def refusal(data: bytes, held: Keyset | None = None) -> Reason:
    with pytest.raises(Refused) as caught:
        read(data, held)
    return caught.value.reason


def test_round_trip(keyset: Keyset) -> None:
    assert read(written(keyset)) == keyset
    assert read(written(keyset), keyset) == keyset


def test_keyset_of_another_fleet(keyset: Keyset) -> None:
    assert refusal(written(keyset, fleet="work")) is Reason.WRONG_AUDIENCE


def test_key_under_the_name_of_another(keyset: Keyset, make_key: Any) -> None:
    stranger = PublicKey(keyset.directors[0].keyid, make_key(9).public.hex())
    assert refusal(written(keyset, directors=[stranger])) is Reason.MALFORMED


def test_older_generation(keyset: Keyset) -> None:
    assert refusal(written(keyset, generation=2), keyset) is Reason.OLD_GENERATION


def test_lower_floor(keyset: Keyset) -> None:
    assert refusal(written(keyset, epoch_floor=99), keyset) is Reason.OLD_EPOCH


def test_endless_keyset(keyset: Keyset) -> None:
    assert refusal(written(keyset) + b" " * limits.ENVELOPE_BYTES) is Reason.TOO_LARGE


@given(payload=st.binary(max_size=200))
def test_rubbish_is_refused(payload: bytes) -> None:
    assert refusal(payload) is Reason.MALFORMED


def test_release_floor_that_falls_or_is_forgotten(keyset: Keyset) -> None:
    held = msgspec.structs.replace(keyset, release_floors={"digits": 7})
    assert refusal(written(keyset), held) is Reason.OLD_GENERATION
    assert refusal(written(keyset, release_floors={"digits": 6}), held) is Reason.OLD_GENERATION
    assert read(written(keyset, release_floors={"digits": 7, "faces": 1}), held).release_floors


@pytest.mark.parametrize("floors", [{"digits": -1}, {"Digits": 1}, {"digits": 1 << 63}])
def test_release_floor_of_another_form(keyset: Keyset, floors: dict[str, int]) -> None:
    data = written(keyset, release_floors=floors)
    assert refusal(data) is Reason.MALFORMED

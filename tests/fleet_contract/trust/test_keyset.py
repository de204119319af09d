"""Guards that only the pinned root key says which keys are believed, and never takes it back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_contract import codec
from fleet_contract.errors import Reason, Refused
from fleet_contract.trust.keyset import PAYLOAD_TYPE, Keyset, PublicKey, read_keyset


def seal(key: Any, keyset: Keyset, **changes: Any) -> bytes:
    payload = codec.encode_json(msgspec.structs.replace(keyset, **changes))
    sealed: bytes = key.seal(PAYLOAD_TYPE, payload)
    return sealed


def read(data: bytes, root: Any, held: Keyset | None = None) -> Keyset:
    return read_keyset(data, fleet="home", root_public=root.public, held=held)


def refusal(data: bytes, root: Any, held: Keyset | None = None) -> Reason:
    with pytest.raises(Refused) as caught:
        read(data, root, held)
    return caught.value.reason


def test_round_trip(root: Any, keyset: Keyset) -> None:
    assert read(seal(root, keyset), root) == keyset
    assert read(seal(root, keyset), root, keyset) == keyset


def test_keyset_signed_by_a_director(root: Any, director: Any, keyset: Keyset) -> None:
    assert refusal(seal(director, keyset), root) is Reason.UNKNOWN_KEY


def test_keyset_of_another_fleet(root: Any, keyset: Keyset) -> None:
    assert refusal(seal(root, keyset, fleet="work"), root) is Reason.WRONG_AUDIENCE


def test_key_under_the_name_of_another(root: Any, keyset: Keyset, make_key: Any) -> None:
    stranger = PublicKey(keyset.directors[0].keyid, make_key(9).public.hex())
    assert refusal(seal(root, keyset, directors=[stranger]), root) is Reason.MALFORMED
    assert refusal(seal(root, keyset, releases=[stranger]), root) is Reason.MALFORMED


def test_replayed_keyset_of_an_older_generation(root: Any, keyset: Keyset) -> None:
    data = seal(root, keyset, generation=2)
    assert refusal(data, root, keyset) is Reason.OLD_GENERATION


def test_replayed_keyset_with_a_lower_floor(root: Any, keyset: Keyset) -> None:
    data = seal(root, keyset, epoch_floor=99)
    assert refusal(data, root, keyset) is Reason.OLD_EPOCH


@given(payload=st.binary(max_size=200))
def test_signed_rubbish_is_refused(root: Any, payload: bytes) -> None:
    assert refusal(root.seal(PAYLOAD_TYPE, payload), root) is Reason.MALFORMED

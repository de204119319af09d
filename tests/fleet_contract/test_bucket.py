"""Guards that device and server find the same bucket, and that an arm holds exactly k devices."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_contract import bucket
from fleet_contract.errors import Refused

salts = st.binary(min_size=16, max_size=16).map(bytes.hex)
fleets = st.sets(st.integers(0, 9_999), min_size=1, max_size=200).map(
    lambda numbers: [f"device-{number}" for number in sorted(numbers)]
)


@given(salt=salts, device=st.from_regex(r"[a-z0-9][a-z0-9-]{0,61}[a-z0-9]", fullmatch=True))
def test_bucket_is_the_head_of_the_hash(salt: str, device: str) -> None:
    digest = hashlib.sha256(bytes.fromhex(salt) + device.encode()).hexdigest()
    assert bucket.write_bucket(bucket.bucket_of(salt, device)) == digest[:16]


@given(number=st.integers(0, bucket.LAST_BUCKET))
def test_round_trip(number: int) -> None:
    assert bucket.read_bucket(bucket.write_bucket(number)) == number


@pytest.mark.parametrize(
    "text",
    ["", "0" * 15, "0" * 17, "g" * 16, "A" * 16, "00112233445566  ", "0" * 15 + "\n", "٣" * 16],
)
def test_other_texts_are_no_buckets(text: str) -> None:
    with pytest.raises(Refused, match="not a bucket"):
        bucket.read_bucket(text)


@pytest.mark.parametrize("salt", ["", "00", "A" * 32, "0" * 33, "00 " * 11, "0" * 32 + "\n"])
def test_other_texts_are_no_salts(salt: str) -> None:
    with pytest.raises(Refused, match="not a salt"):
        bucket.bucket_of(salt, "device-1")


@given(salt=salts, devices=fleets, data=st.data())
def test_arm_holds_exactly_k_devices_and_growing_keeps_them(
    salt: str, devices: list[str], data: st.DataObject
) -> None:
    buckets = {device: bucket.bucket_of(salt, device) for device in devices}
    first = data.draw(st.integers(0, len(devices)))
    second = data.draw(st.integers(first, len(devices)))

    def members(count: int) -> set[str]:
        end = bucket.arm_end(buckets.values(), count)
        return {d for d, number in buckets.items() if end is not None and number <= end}

    assert len(members(first)) == first
    assert len(members(second)) == second
    assert members(first) <= members(second)


def test_arm_larger_than_the_fleet_is_refused() -> None:
    with pytest.raises(ValueError, match="needs as many"):
        bucket.arm_end([1, 2], 3)


def test_buckets_are_spread_evenly() -> None:
    salt = "5a" * 16
    heads = [bucket.bucket_of(salt, f"device-{i}") >> 60 for i in range(16_000)]
    counts = [heads.count(head) for head in range(16)]
    # Binomial(16,000, 1/16) has a deviation of 31: five of them.
    assert max(abs(count - 1_000) for count in counts) < 155


def test_two_salts_draw_independent_arms() -> None:
    devices = [f"device-{i}" for i in range(2_000)]
    arms = []
    for salt in ("00" * 16, "01" * 16):
        buckets = {device: bucket.bucket_of(salt, device) for device in devices}
        end = bucket.arm_end(buckets.values(), 1_000)
        assert end is not None
        arms.append({device for device, number in buckets.items() if number <= end})
    # Hypergeometric around 500 with a deviation of 11.
    assert 440 < len(arms[0] & arms[1]) < 560

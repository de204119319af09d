"""Guards from devices that a restore cuts off, and from certificates that pass for theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fleet_server.broker.rules import SERVER_IDENTITIES
from fleet_server.errors import StartError
from fleet_server.trust.authority import gaps
from fleet_server.trust.authority.authority import Authority, open_authority
from fleet_server.trust.authority.certificates import DAY_MS, HOUR_MS, Issued
from fleet_server.trust.authority.standing import Line
from tests.fleet_server.device_key import DeviceKey


def issue(authority: Authority, name: str = "dev-1") -> Issued:
    return authority.issue(DeviceKey().key.public_key(), name, lifetime_ms=HOUR_MS)


def der(issued: Issued) -> bytes:
    return x509.load_pem_x509_certificate(issued.pem).public_bytes(Encoding.DER)


def opened(folder: Path, clock: Any) -> Authority:
    return open_authority(
        folder,
        fleet="home",
        hosts=["127.0.0.1", "localhost"],
        identities=SERVER_IDENTITIES,
        may_make=True,
        random_bytes=clock.random_bytes,
        now_ms=clock.now_ms,
    )


def restored(authority: Authority, clock: Any, made_ms: int) -> Authority:
    gaps.add_gap(authority.folder, made_ms, clock.now_ms())
    return opened(authority.folder, clock)


def test_certificate_of_the_time_between_is_worth_nothing(authority: Authority, clock: Any) -> None:
    made_ms = clock.now_ms()
    clock.wall_ms += HOUR_MS
    issued = issue(authority)
    assert authority.forgotten(der(issued)) is None
    clock.wall_ms += HOUR_MS
    after = restored(authority, clock, made_ms)
    assert after.forgotten(der(issued)) == issued


def test_certificate_of_another_time_passes_for_one_of_the_gap(
    authority: Authority, clock: Any
) -> None:
    before = issue(authority)
    clock.wall_ms += DAY_MS
    made_ms = clock.now_ms()
    clock.wall_ms += HOUR_MS
    after = restored(authority, clock, made_ms)
    clock.wall_ms += HOUR_MS
    minted = issue(after)
    assert after.forgotten(der(before)) is None
    assert after.forgotten(der(minted)) is None


def test_certificate_of_another_authority_is_of_the_gap(
    authority: Authority, tmp_path: Path, clock: Any
) -> None:
    foreign = issue(opened(tmp_path / "foreign", clock))
    after = restored(authority, clock, clock.now_ms() - HOUR_MS)
    assert after.forgotten(der(foreign)) is None
    assert after.forgotten(b"") is None
    assert after.forgotten(b"\x30\x82" * 100) is None


def test_rotation_leaves_the_gap_open(authority: Authority, clock: Any) -> None:
    issued = issue(authority)
    after = restored(authority, clock, clock.now_ms() - HOUR_MS)
    assert after.forgotten(der(issued)) is not None
    after.rotate(Line.DEVICE, stolen=True)
    assert after.forgotten(der(issued)) is None


def test_second_restore_forgets_the_first_gap(authority: Authority, clock: Any) -> None:
    issued = issue(authority)
    restored(authority, clock, clock.now_ms())
    clock.wall_ms += DAY_MS
    after = restored(authority, clock, clock.now_ms())
    assert after.forgotten(der(issued)) is not None


def test_damaged_list_of_gaps_is_read_as_none(authority: Authority, clock: Any) -> None:
    (authority.folder / gaps.FILE).write_bytes(b"{")
    with pytest.raises(StartError):
        opened(authority.folder, clock)

"""Guards from keys that are half there, readable by others, made twice, or not believed."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fleet_contract.errors import Reason, Refused
from fleet_contract.trust.checks import check_assignment, check_stop
from fleet_contract.trust.directive import Assignment, Stop
from fleet_contract.trust.keyset import read_keyset
from fleet_server.errors import StartError
from fleet_server.trust import durable
from fleet_server.trust.keyring import KEYS, Keyring, open_keyring


def counting(first: int) -> Callable[[int], bytes]:
    numbers = iter(range(first, 250))
    return lambda count: bytes([next(numbers)]) * count


def stop_document(keyring: Keyring) -> Stop:
    return Stop(keyring.fleet, keyring.generation, 7, 1, False, "")


def test_device_does_not_believe_the_server(keyring: Keyring) -> None:
    keyset = read_keyset(keyring.keyset_bytes, fleet="home", held=None)
    stop = stop_document(keyring)
    assert check_stop(keyring.sign_stop(stop), keyset=keyset, fleet="home", held=None).document == (
        stop
    )
    assignment = Assignment("home", "dev-1", 1, 8, 1, "default", {"a": "b"}, {}, {}, {"mm": 3})
    sealed = keyring.sign_assignment(assignment)
    accepted = check_assignment(sealed, keyset=keyset, fleet="home", device="dev-1", held=None)
    assert accepted.document == assignment


def test_next_director_is_unknown_when_it_is_needed(keyring: Keyring) -> None:
    assert len(keyring.keyset.director_keys()) == 2


def test_restart_makes_new_keys(tmp_path: Path) -> None:
    first = open_keyring(tmp_path / "keys", fleet="home", random_bytes=counting(1))
    second = open_keyring(tmp_path / "keys", fleet="home", random_bytes=counting(100))
    assert first.made_now and not second.made_now
    assert second.keyset_bytes == first.keyset_bytes
    assert second.sign_stop(stop_document(second)) == first.sign_stop(stop_document(first))


def test_key_file_that_others_can_read(tmp_path: Path) -> None:
    open_keyring(tmp_path / "keys", fleet="home", random_bytes=counting(1))
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    for path in (tmp_path / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", [f"{key}.key" for key in KEYS] + ["keyset.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage"])
def test_damaged_key_is_replaced_by_a_new_one(tmp_path: Path, name: str, damage: str) -> None:
    folder = tmp_path / "keys"
    open_keyring(folder, fleet="home", random_bytes=counting(1))
    path = folder / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else b"\xff\x00garbage")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(StartError) as refused:
        open_keyring(folder, fleet="home", random_bytes=counting(100))
    assert refused.value.code == "keys_unreadable"
    assert sorted(path.name for path in folder.iterdir()) == before


def test_killed_while_making_keys(tmp_path: Path) -> None:
    # What a crash leaves: some files in a folder that is not yet the keyring's.
    left_over = tmp_path / "keys.new"
    left_over.mkdir()
    (left_over / "director.key").write_text("ab")
    keyring = open_keyring(tmp_path / "keys", fleet="home", random_bytes=counting(1))
    assert keyring.made_now
    again = open_keyring(tmp_path / "keys", fleet="home", random_bytes=counting(9))
    assert again.keyset_bytes == keyring.keyset_bytes


def test_keys_of_another_fleet(tmp_path: Path) -> None:
    open_keyring(tmp_path / "keys", fleet="home", random_bytes=counting(1))
    with pytest.raises(StartError) as refused:
        open_keyring(tmp_path / "keys", fleet="factory", random_bytes=counting(1))
    assert refused.value.code == "other_fleet"


def test_keyset_that_does_not_name_the_director(tmp_path: Path) -> None:
    open_keyring(tmp_path / "one", fleet="home", random_bytes=counting(1))
    open_keyring(tmp_path / "two", fleet="home", random_bytes=counting(100))
    (tmp_path / "one" / "keyset.json").write_bytes((tmp_path / "two" / "keyset.json").read_bytes())
    with pytest.raises(StartError):
        open_keyring(tmp_path / "one", fleet="home", random_bytes=counting(1))


def test_secret_in_the_error_of_a_damaged_key(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    open_keyring(folder, fleet="home", random_bytes=counting(1))
    secret = (folder / "director.key").read_text().strip()
    (folder / "director.key").write_text(secret + "zz")
    with pytest.raises(StartError) as refused:
        open_keyring(folder, fleet="home", random_bytes=counting(1))
    assert secret[:16] not in f"{refused.value.detail} {refused.value.advice}"


def test_signature_of_another_fleet(tmp_path: Path, keyring: Keyring) -> None:
    other = open_keyring(tmp_path / "other", fleet="home", random_bytes=counting(100))
    with pytest.raises(Refused) as refused:
        check_stop(
            other.sign_stop(stop_document(other)), keyset=keyring.keyset, fleet="home", held=None
        )
    assert refused.value.reason is Reason.UNKNOWN_KEY


def raise_generation(keyring: Keyring, least: int) -> None:
    raised = keyring.propose_raised(
        keyring.keyset_bytes, least=least, epoch_floor=9, release_floors={"digits": 3}
    )
    keyring.adopt(raised)


def test_raised_generation_voids_what_was_signed_before(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    keyring = open_keyring(folder, fleet="home", random_bytes=counting(1))
    before, held = keyring.sign_stop(stop_document(keyring)), keyring.keyset
    raise_generation(keyring, 7)
    keyset = read_keyset(keyring.keyset_bytes, fleet="home", held=held)
    assert (keyset.generation, keyring.generation) == (7, 7)
    assert (keyset.epoch_floor, keyset.release_floors) == (9, {"digits": 3})
    with pytest.raises(Refused) as refused:
        check_stop(before, keyset=keyset, fleet="home", held=None)
    assert refused.value.reason is Reason.OLD_GENERATION
    fresh = keyring.sign_stop(msgspec.structs.replace(stop_document(keyring), epoch=10))
    check_stop(fresh, keyset=keyset, fleet="home", held=None)
    raise_generation(keyring, 3)
    assert open_keyring(folder, fleet="home", random_bytes=counting(9)).generation == 8


def test_generation_that_cannot_be_written_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "keys"
    keyring = open_keyring(folder, fleet="home", random_bytes=counting(1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write_file", full)
    with pytest.raises(OSError, match="No space"):
        raise_generation(keyring, 7)
    assert keyring.generation == 1

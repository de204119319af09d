"""Guards from a repository that is half written, forgets, expires, or grows on every device."""

from __future__ import annotations

import stat
from typing import Any

import pytest

from fleet_contract.manifest import artifact_path, manifest_path
from fleet_contract.trust.keyset import KEYSET_PATH
from fleet_server.errors import StartError
from fleet_server.trust import durable
from fleet_server.trust.catalogue.repository import Catalogue
from fleet_server.trust.catalogue.upkeep import Upkeep

DAY_MS = 86_400_000


def publish(catalogue: Catalogue, model: str, files: list[Any]) -> list[str]:
    """Publish a release and return the paths of its targets."""
    catalogue.publish(model, files[0], files[1:])
    return [
        manifest_path(model, files[0].digest),
        *(artifact_path(model, file.digest) for file in files[1:]),
    ]


def test_foreign_client_finds_what_was_published(bench: Any, judge: Any, files: Any) -> None:
    catalogue = bench.open()
    paths = publish(catalogue, "digits", files("one"))
    judge(catalogue, *paths)
    more = publish(catalogue, "digits", files("two"))
    judge(catalogue, *paths, *more)
    judge(bench.open(may_make=False), *paths, *more)


@pytest.mark.parametrize("model", ["root", "targets", "snapshot", "timestamp", "a-b", "a_b", "x-0"])
def test_model_named_like_a_role_takes_its_place(
    bench: Any, judge: Any, files: Any, model: str
) -> None:
    catalogue = bench.open()
    others = publish(catalogue, "a", files("a")) + publish(catalogue, "x", files("x"))
    paths = publish(catalogue, model, files(model))
    judge(catalogue, *others, *paths)


def test_publishing_twice_changes_nothing(bench: Any, files: Any) -> None:
    catalogue = bench.open()
    publish(catalogue, "digits", files("one"))
    before = catalogue.versions()
    publish(catalogue, "digits", files("one"))
    catalogue.publish_document(KEYSET_PATH, b"{}")
    once = catalogue.versions()
    catalogue.publish_document(KEYSET_PATH, b"{}")
    assert catalogue.versions() == once != before


def test_keys_that_others_can_read(bench: Any, files: Any) -> None:
    publish(bench.open(), "digits", files("one"))
    keys = bench.folder / "trust" / "keys"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert {path.name for path in keys.iterdir()} >= {"root.pem", "model.digits.pem"}
    for path in keys.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


@pytest.mark.parametrize("name", ["../keys/root.pem", "keys/root.pem", "", "1.root.json/../x", "x"])
def test_name_that_is_no_metadata(bench: Any, name: str) -> None:
    catalogue = bench.open()
    assert catalogue.read(name) is None
    assert catalogue.read_target(name) is None


def test_two_files_of_one_key_share_a_version(bench: Any, files: Any) -> None:
    catalogue = bench.open()
    for number in range(20):
        publish(catalogue, f"model-{number % 3}", files(str(number)))
        if number == 10:
            catalogue = bench.open()
    bench.now_ms += 200 * DAY_MS
    catalogue.renew()
    versions = catalogue.versions()
    delegated = [versions[role] for role in versions if role.startswith(("bin.", "model."))]
    assert len(set(delegated)) == len(delegated) > 20


# --- power cuts -----------------------------------------------------------------------------------


class PowerCut(BaseException):
    """Ends the process in the middle, as far as the code under test can tell."""


class Outlet:
    """Cuts the power at the n-th write: before anything, or after the rename."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        self.after = False
        self.writes = 0
        write = durable.write_file

        def mortal(path: Any, data: bytes) -> None:
            self.writes += 1
            if self.writes == self.left and not self.after:
                path.with_name(f".{path.name}.new").write_bytes(data[: len(data) // 2])
                raise PowerCut
            write(path, data)
            if self.writes == self.left:
                raise PowerCut

        monkeypatch.setattr(durable, "write_file", mortal)

    def cut(self, number: int, *, after: bool) -> None:
        self.left, self.after, self.writes = number, after, 0


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("change", ["first release", "second release", "keyset", "renewal"])
def test_killed_while_changing(
    bench: Any, judge: Any, files: Any, monkeypatch: pytest.MonkeyPatch, change: str, after: bool
) -> None:
    catalogue = bench.open()
    held = publish(catalogue, "digits", files("held"))
    judge(catalogue, *held)
    outlet = Outlet(monkeypatch)

    def work(catalogue: Catalogue) -> list[str]:
        if change == "first release":
            return publish(catalogue, "faces", files("new"))
        if change == "second release":
            return publish(catalogue, "digits", files("new"))
        if change == "keyset":
            catalogue.publish_document(KEYSET_PATH, b'{"generation":2}')
        else:
            bench.now_ms += 200 * DAY_MS
            catalogue.renew()
        return []

    for number in range(1, 100):
        now_ms = bench.now_ms
        outlet.cut(number, after=after)
        try:
            work(catalogue)
        except PowerCut:
            pass
        else:
            break
        bench.now_ms = now_ms
        outlet.cut(0, after=after)
        catalogue = bench.open(may_make=False)
        if change == "renewal":
            catalogue.renew()
        judge(catalogue, *held)
    assert 2 < number < 100
    outlet.cut(0, after=after)
    judge(catalogue, *held, *work(catalogue))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_while_the_repository_is_made(
    bench: Any, judge: Any, files: Any, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    outlet = Outlet(monkeypatch)
    number, catalogue = 0, None
    while catalogue is None:
        number += 1
        outlet.cut(number, after=after)
        try:
            catalogue = bench.open()
        except PowerCut:
            assert not (bench.folder / "trust").exists()
    assert number > 8
    outlet.cut(0, after=after)
    judge(catalogue, *publish(catalogue, "digits", files("one")))


def test_disk_full_at_the_timestamp_publishes_nothing(
    bench: Any, judge: Any, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = bench.open()
    held = publish(catalogue, "digits", files("held"))
    write = durable.write_file

    def full(path: Any, data: bytes) -> None:
        if path.name == "timestamp.json":
            raise OSError(28, "No space left on device")
        write(path, data)

    before = catalogue.versions()
    names = {path.name for path in (bench.folder / "trust" / "metadata").iterdir()}
    monkeypatch.setattr(durable, "write_file", full)
    with pytest.raises(OSError, match="No space"):
        publish(catalogue, "digits", files("new"))
    assert catalogue.versions() == before
    for path in (bench.folder / "trust" / "metadata").iterdir():
        if path.name not in names:
            assert catalogue.read(path.name) is None, "shown before it counts"
    monkeypatch.setattr(durable, "write_file", write)
    judge(catalogue, *held, *publish(catalogue, "digits", files("new")))


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "garbage", "foreign"])
@pytest.mark.parametrize(
    "name",
    [
        "keys/signers.json",
        "keys/timestamp.pem",
        "keys/root.pem",
        "metadata/timestamp.json",
        "metadata/1.snapshot.json",
        "metadata/1.targets.json",
        "metadata/1.root.json",
    ],
)
def test_damaged_repository_is_made_anew(bench: Any, tmp_path: Any, name: str, damage: str) -> None:
    bench.open()
    path = bench.folder / "trust" / name
    if damage == "missing":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"{}")
    else:
        other = type(bench)(tmp_path / "other")
        other.open()
        path.write_bytes((other.folder / "trust" / name).read_bytes())
    with pytest.raises(StartError) as refused:
        bench.open()
    assert refused.value.code == "trust_unreadable"


def test_missing_repository_is_made_anew_beside_keys_that_devices_believe(bench: Any) -> None:
    with pytest.raises(StartError) as refused:
        bench.open(may_make=False)
    assert refused.value.code == "trust_unreadable"
    assert not (bench.folder / "trust").exists()


def test_family_whose_key_is_elsewhere(bench: Any, files: Any) -> None:
    catalogue = bench.open()
    publish(catalogue, "digits", files("one"))
    signers = bench.folder / "trust" / "keys" / "signers.json"
    signers.write_text(signers.read_text().replace("file2:model.digits.pem", ""))
    (bench.folder / "trust" / "keys" / "model.digits.pem").unlink()
    catalogue = bench.open()
    before = catalogue.versions()
    two = files("two")
    assert not catalogue.publish("digits", two[0], two[1:])
    assert catalogue.versions() == before
    publish(catalogue, "faces", files("three"))
    bench.now_ms += 200 * DAY_MS
    assert "model.digits" in catalogue.renew()
    assert "targets" not in catalogue.renew()


# --- time -----------------------------------------------------------------------------------------


def test_nothing_expires_while_the_server_runs(bench: Any, judge: Any, files: Any) -> None:
    catalogue = bench.open()
    paths = publish(catalogue, "digits", files("one"))
    for _ in range(2 * 4 * 400):
        bench.now_ms += DAY_MS // 8
        assert catalogue.renew() == []
    judge(catalogue, *paths)
    versions = catalogue.versions()
    assert versions["root"] == 3
    assert versions["timestamp"] > 600
    for role in versions.keys() - {"root"}:
        kept = len(list((bench.folder / "trust" / "metadata").glob(f"*.{role}.json")))
        assert kept <= 9, "old versions pile up"


def test_server_that_was_off_for_a_year_serves_what_has_expired(
    bench: Any, judge: Any, files: Any
) -> None:
    catalogue = bench.open()
    paths = publish(catalogue, "digits", files("one"))
    judge(catalogue, *paths)
    bench.now_ms += 366 * DAY_MS
    catalogue = bench.open()
    upkeep = Upkeep(catalogue)
    upkeep.start()
    upkeep.stop()
    judge(catalogue, *paths)


def test_renewal_without_need_changes_nothing(bench: Any, files: Any) -> None:
    catalogue = bench.open()
    publish(catalogue, "digits", files("one"))
    before = catalogue.versions()
    bench.now_ms += DAY_MS // 3
    catalogue.renew()
    assert catalogue.versions() == before

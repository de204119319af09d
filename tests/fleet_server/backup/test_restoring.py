"""What was backed up is there after a restore: every row, every file, on either database."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from fleet_contract.trust.keyset import KEYSET_PATH
from fleet_server.backup import contents, dump, restoring
from fleet_server.backup.contents import Summary
from fleet_server.backup.marker import read_marker
from fleet_server.clock import Clock
from fleet_server.database import Database
from fleet_server.errors import Conflict, Invalid, StartError, Unavailable
from fleet_server.trust.catalogue.files import CatalogueFiles
from fleet_server.trust.catalogue.opening import open_catalogue
from fleet_server.trust.keyring import open_keyring
from tests.fleet_server.backup.conftest import FLEET, contents_of, database_of, odd_row

NOT_COPIED = {"broker/mosquitto.conf"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("fleet.sqlite")
    }


def restore(source: Path, target: Path, url: str = "", now_ms: int = 7) -> Summary:
    return restoring.restore(source, target, url, now_ms=now_ms)


def test_restored_server_is_the_one_that_was_backed_up(
    folder: Path, full_database: str, backup_file: Path, tmp_path: Path, clock: Clock
) -> None:
    target = tmp_path / "restored"
    made = restore(backup_file, target)
    assert contents_of(database_of(target)) == contents_of(full_database)
    # Versions that went out of use stay behind.
    named = {f"trust/metadata/{name}" for name in CatalogueFiles(folder / "trust").committed()}
    expected = {
        name: data
        for name, data in files_of(folder).items()
        if name not in NOT_COPIED and (name in named or not name.startswith("trust/metadata/"))
    }
    found = files_of(target)
    marker, gaps = found.pop("restored"), found.pop("pki/gaps.json")
    assert found == expected
    assert made.files == len(expected)
    assert read_marker(target) is not None, (marker, gaps)
    for path in target.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.suffix == ".sqlite"
    keyring = open_keyring(target / "keys", fleet=FLEET, random_bytes=clock.random_bytes)
    assert not keyring.made_now
    opened = open_catalogue(
        target / "trust", may_make=False, random_bytes=clock.random_bytes, now_ms=clock.now_ms
    )
    opened.publish_document(KEYSET_PATH, keyring.keyset_bytes)


@pytest.mark.postgres
def test_from_sqlite_to_postgresql_and_back(
    full_database: str,
    backup_file: Path,
    back_up: Callable[..., Summary],
    tmp_path: Path,
    postgres_url: str,
) -> None:
    before = contents_of(full_database)
    restore(backup_file, tmp_path / "there", postgres_url)
    assert contents_of(postgres_url) == before
    with closing(Database(postgres_url)) as database, database.transaction() as session:
        # What the database counts up goes on, and takes no number twice.
        session.connection().execute(text("DELETE FROM rollout_evidence"))
    back_up(tmp_path / "second.tar", url=postgres_url)
    restore(tmp_path / "second.tar", tmp_path / "back")
    assert contents_of(database_of(tmp_path / "back")) == before | {"rollout_evidence": []}


@pytest.mark.postgres
def test_keys_that_postgresql_counts_up_go_on_above_the_restored_ones(
    folder: Path, back_up: Callable[..., Summary], tmp_path: Path, postgres_url: str
) -> None:
    with closing(Database(database_of(folder))) as database, database.transaction() as session:
        connection = session.connection()
        tables = {table.name: table for table in dump.tables_of(connection)}
        table = tables["rollout_evidence"]
        connection.execute(table.insert().values(odd_row(table) | {"sequence": 41}))
    back_up(tmp_path / "one.tar")
    restore(tmp_path / "one.tar", tmp_path / "there", postgres_url)
    with closing(Database(postgres_url)) as database, database.transaction() as session:
        connection = session.connection()
        drawn = connection.execute(
            text("SELECT nextval(pg_get_serial_sequence('rollout_evidence', 'sequence'))")
        ).scalar()
        assert drawn == 42


def test_backup_of_an_older_version_is_migrated(
    folder: Path, back_up: Callable[..., Summary], tmp_path: Path
) -> None:
    old = tmp_path / "old.sqlite"
    with closing(Database(f"sqlite:///{old}")) as database:
        database.migrate("0001")
        with database.transaction() as session:
            session.connection().execute(
                text(
                    "INSERT INTO cohort (fleet, name, selector, priority)"
                    " VALUES ('home', 'c', '{}', 1)"
                )
            )
    made = back_up(tmp_path / "old.tar", url=f"sqlite:///{old}")
    assert made.description.revision == "0001"
    restore(tmp_path / "old.tar", tmp_path / "restored")
    found = contents_of(database_of(tmp_path / "restored"))
    assert [row[1] for row in found["cohort"]] == ["c"]
    assert "audit_record" in found


def test_backup_of_a_newer_version_is_refused(
    folder: Path, back_up: Callable[..., Summary], tmp_path: Path
) -> None:
    with closing(Database(database_of(folder))) as database, database.transaction() as session:
        session.connection().execute(text("UPDATE alembic_version SET version_num = '9999'"))
    back_up(tmp_path / "newer.tar")
    with pytest.raises(StartError) as refused:
        restore(tmp_path / "newer.tar", tmp_path / "restored")
    assert refused.value.code == "newer_backup"
    assert not (tmp_path / "restored").exists()


def test_nothing_that_is_there_is_overwritten(
    folder: Path, backup_file: Path, back_up: Callable[..., Summary], tmp_path: Path
) -> None:
    before = files_of(folder)
    with pytest.raises(Conflict, match="not empty"):
        restore(backup_file, folder)
    assert files_of(folder) == before
    data = backup_file.read_bytes()
    with pytest.raises(Conflict, match="already"):
        back_up(backup_file)
    assert backup_file.read_bytes() == data
    with pytest.raises(Conflict, match="tables"):
        restore(backup_file, tmp_path / "restored", database_of(folder))
    (tmp_path / "taken.new").mkdir()
    with pytest.raises(Conflict, match="in the way"):
        restore(backup_file, tmp_path / "taken")


def test_empty_folder_is_taken(backup_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    restore(backup_file, tmp_path / "mounted")
    assert (tmp_path / "mounted" / "keys" / "director.key").exists()


class PowerCut(BaseException):
    pass


def cut_at(member: int) -> Callable[[str, int], None]:
    seen: list[str] = []

    def progress(name: str, _size: int) -> None:
        seen.append(name)
        if len(seen) == member:
            raise PowerCut

    return progress


@pytest.mark.parametrize("member", [1, 5, 20])
def test_killed_while_restoring(backup_file: Path, tmp_path: Path, member: int) -> None:
    target = tmp_path / "restored"
    with pytest.raises(PowerCut):
        restoring.restore(backup_file, target, "", now_ms=7, progress=cut_at(member))
    assert not target.exists()
    restore(backup_file, target)
    assert (target / "fleet.sqlite").exists()
    assert not (tmp_path / "restored.new").exists()


@pytest.mark.parametrize("member", [1, 5, 20])
def test_killed_while_backing_up(
    back_up: Callable[..., Summary], tmp_path: Path, member: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "one.tar"
    with monkeypatch.context() as patched:
        # A process that is killed tidies nothing up.
        patched.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(PowerCut):
            back_up(target, progress=cut_at(member))
    assert not target.exists()
    assert (tmp_path / "one.tar.part").exists()
    back_up(target)
    assert not (tmp_path / "one.tar.part").exists()
    with target.open("rb") as file:
        restoring.check_backup(file)


def test_full_disk_leaves_no_backup(
    back_up: Callable[..., Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unavailable, match="No space left"):
        back_up(tmp_path / "one.tar")
    assert [path.name for path in tmp_path.glob("one.tar*")] == []


def test_backup_is_for_its_owner_alone(backup_file: Path) -> None:
    assert stat.S_IMODE(backup_file.stat().st_mode) == 0o600


def test_backup_without_keys_holds_no_secret(
    folder: Path, back_up: Callable[..., Summary], tmp_path: Path
) -> None:
    made = back_up(tmp_path / "public.tar", with_keys=False)
    assert not made.description.keys
    data = (tmp_path / "public.tar").read_bytes()
    secrets = [
        *(folder / "keys").glob("*.key"),
        *(path for path in (folder / "trust" / "keys").rglob("*") if path.is_file()),
        *(folder / "pki").glob("*.key"),
        folder / "admin-token",
    ]
    for path in secrets:
        assert path.read_bytes().strip() not in data, path
    assert b"BEGIN CERTIFICATE" in data


def test_link_in_the_data_folder_is_not_followed(
    folder: Path, back_up: Callable[..., Summary], tmp_path: Path
) -> None:
    (folder / "pki" / "more.pem").symlink_to("/etc/hostname")
    with pytest.raises(Unavailable):
        back_up(tmp_path / "one.tar")
    assert not (tmp_path / "one.tar").exists()


def test_metadata_that_is_pruned_while_it_is_copied(
    folder: Path,
    back_up: Callable[..., Summary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, missed = CatalogueFiles.read, list[str]()

    def read(self: CatalogueFiles, name: str) -> bytes:
        if name.endswith(".targets.json") and not missed:
            missed.append(name)
            raise FileNotFoundError(2, "No such file or directory", name)
        return real(self, name)

    monkeypatch.setattr(CatalogueFiles, "read", read)
    back_up(tmp_path / "one.tar")
    assert missed
    with (tmp_path / "one.tar").open("rb") as file:
        _, sums = restoring.check_backup(file)
    assert any(name.endswith(".targets.json") for name in sums)


def test_every_name_has_its_room() -> None:
    assert contents.file_of("files/store/artifacts/digits/" + "a" * 64)
    for name in ("files/fleet.sqlite", "files/lock", "files/../keys/x", "files/keys", "keys/a"):
        assert contents.file_of(name) is None


def test_folder_of_nobody(tmp_path: Path, back_up: Callable[..., Any], folder: Path) -> None:
    (folder / "keys" / "keyset.json").write_bytes(b"{")
    with pytest.raises(Conflict, match="not the data folder"):
        back_up(tmp_path / "one.tar")
    with pytest.raises(Invalid):
        restore(folder / "instance", tmp_path / "restored")

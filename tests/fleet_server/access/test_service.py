"""Guards from tokens that are lost, leaked, or made again."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from fleet_server.access import service
from fleet_server.access.permissions import ROLES
from fleet_server.data_folder import TOKEN_FILE
from fleet_server.database import Database
from fleet_server.errors import StartError, Unauthorized


def ensure(database: Database, folder: Path, clock: Any) -> bool:
    with database.transaction() as session:
        return service.ensure_admin_token(
            session, folder, random_bytes=clock.random_bytes, now_ms=1
        )


def read_token(folder: Path) -> str:
    return (folder / TOKEN_FILE).read_text().strip()


def authenticate(database: Database, token: str) -> str:
    with database.reading() as session:
        return service.authenticate(session, ROLES, token, fleet="home", now_ms=1).name


def test_token_file_that_others_can_read(database: Database, tmp_path: Path, clock: Any) -> None:
    assert ensure(database, tmp_path, clock)
    assert stat.S_IMODE((tmp_path / TOKEN_FILE).stat().st_mode) == 0o600
    assert authenticate(database, read_token(tmp_path)) == "admin"


def test_killed_between_the_file_and_the_commit(
    database: Database, tmp_path: Path, clock: Any
) -> None:
    with pytest.raises(RuntimeError), database.transaction() as session:
        service.ensure_admin_token(session, tmp_path, random_bytes=clock.random_bytes, now_ms=1)
        raise RuntimeError("killed")
    token = read_token(tmp_path)
    assert ensure(database, tmp_path, clock)
    assert read_token(tmp_path) == token
    assert authenticate(database, token) == "admin"


def test_removed_token_file_makes_a_new_way_in(
    database: Database, tmp_path: Path, clock: Any
) -> None:
    ensure(database, tmp_path, clock)
    (tmp_path / TOKEN_FILE).unlink()
    assert not ensure(database, tmp_path, clock)
    assert not (tmp_path / TOKEN_FILE).exists()


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff\xfe" * 40])
def test_damaged_token_file_becomes_a_token(
    database: Database, tmp_path: Path, clock: Any, content: bytes
) -> None:
    (tmp_path / TOKEN_FILE).write_bytes(content)
    with pytest.raises(StartError):
        ensure(database, tmp_path, clock)


@pytest.mark.parametrize("token", ["", "ef_", "x" * 5_000, "ef_" + "0" * 64])
def test_token_that_was_guessed(database: Database, tmp_path: Path, clock: Any, token: str) -> None:
    ensure(database, tmp_path, clock)
    with pytest.raises(Unauthorized):
        authenticate(database, token)


def test_hash_instead_of_the_token(database: Database, tmp_path: Path, clock: Any) -> None:
    ensure(database, tmp_path, clock)
    with pytest.raises(Unauthorized):
        authenticate(database, service.hash_secret(read_token(tmp_path)))

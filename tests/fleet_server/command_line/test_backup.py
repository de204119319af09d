"""Guards from a backup that nobody can make, check or use without reading the source."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet_server import data_folder
from fleet_server.backup.marker import MARKER_FILE

Edgefleet = Callable[..., Any]


@pytest.fixture
def here(server: Any) -> Any:
    server.wait_ready()
    data_folder.remember_url(server.settings.data_dir, server.settings.url)
    return server


def test_from_a_running_server_to_a_restored_one(
    here: Any,
    start_server: Callable[..., Any],
    edgefleet: Edgefleet,
    tmp_path: Path,
) -> None:
    file = tmp_path / "b.tar"
    said = edgefleet("backup", str(file))
    assert said.code == 0, said.err
    assert "fleet home" in said.out and "keys" in said.out and "--check" in said.out
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "already" in edgefleet("backup", str(file)).err
    checked = json.loads(edgefleet("restore", "--check", str(file), "--json").out)
    assert checked["description"]["fleet"] == "home" and checked["files"] > 5
    assert "not empty" in edgefleet("restore", str(file)).err

    here.stop()
    here.settings.data_dir.rename(tmp_path / "lost")
    said = edgefleet("restore", str(file))
    assert said.code == 0, said.err
    assert "server --fleet home" in said.out and "trust after-restore" in said.out
    restored = start_server()
    data_folder.remember_url(restored.settings.data_dir, restored.settings.url)
    assert (restored.settings.data_dir / MARKER_FILE).exists()
    # The token of the lost server is the restored one's.
    said = edgefleet("trust", "after-restore", "--wait", "0")
    assert said.code == 0, said.err
    assert "Generation 2" in said.out and "be done again" in said.out
    restored.wait_ready()
    assert not (restored.settings.data_dir / MARKER_FILE).exists()


def test_backup_without_keys_says_what_is_missing(
    here: Any, edgefleet: Edgefleet, tmp_path: Path
) -> None:
    said = edgefleet("backup", str(tmp_path / "b.tar"), "--without-keys")
    assert "no keys" in said.out
    here.stop()
    here.settings.data_dir.rename(tmp_path / "lost")
    assert "holds no keys" in edgefleet("restore", str(tmp_path / "b.tar")).out


def test_folder_without_a_server(edgefleet: Edgefleet, tmp_path: Path) -> None:
    said = edgefleet("backup", str(tmp_path / "b.tar"))
    assert said.code == 1 and "--data-dir" in said.err
    assert not (tmp_path / "b.tar").exists()
    said = edgefleet("restore", "--check", str(tmp_path / "b.tar"))
    assert said.code == 1 and "cannot be read" in said.err
    (tmp_path / "b.tar").write_bytes(b"no archive")
    assert "no whole backup" in edgefleet("restore", "--check", str(tmp_path / "b.tar")).err
    assert "no whole backup" in edgefleet("restore", str(tmp_path / "b.tar")).err

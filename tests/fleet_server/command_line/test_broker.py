"""Guards from a broker's key that others can read, and from half of its files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Edgefleet = Callable[..., Any]


@pytest.fixture
def open_handed() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_key_that_others_can_read_while_it_is_written(
    server: Any,
    edgefleet: Edgefleet,
    tmp_path: Path,
    open_handed: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The folder may be there already, open to everybody."""
    folder = tmp_path / "broker"
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(Path, "chmod", lambda *_: None)
    said = edgefleet("broker", "config", "--output", str(folder), "--place", "/etc/mosquitto/own")
    assert said.code == 0, said.err
    for name in ("server.pem", "clients.pem", "revoked.pem", "access-list"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    text = (folder / "mosquitto.conf").read_text()
    assert "/etc/mosquitto/own/server.pem" in text and str(folder) not in text


def test_folder_of_no_server(edgefleet: Edgefleet, tmp_path: Path) -> None:
    said = edgefleet("broker", "config", "--output", str(tmp_path / "broker"))
    assert said.code == 1 and "--data-dir" in said.err
    assert not (tmp_path / "broker").exists()

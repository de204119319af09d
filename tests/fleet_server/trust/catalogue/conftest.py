"""A repository, a foreign client that judges it, and releases to publish."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater
from tuf.ngclient._internal import trusted_metadata_set

from fleet_contract.manifest import FileRef
from fleet_server.trust.catalogue.opening import open_catalogue
from fleet_server.trust.catalogue.repository import Catalogue

DAY_MS = 86_400_000
START_MS = 1_795_000_000_000


@dataclass
class Bench:
    """One repository folder and the time there."""

    folder: Path
    now_ms: int = START_MS

    def open(self, *, may_make: bool = True) -> Catalogue:
        return open_catalogue(
            self.folder / "trust",
            may_make=may_make,
            random_bytes=os.urandom,
            now_ms=lambda: self.now_ms,
        )


class _Reader(FetcherInterface):
    """Serves a repository to python-tuf's own client, and counts what it takes."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.taken: dict[str, int] = {}

    def _fetch(self, url: str) -> Any:
        name = url.rpartition("/")[2]
        data = self.catalogue.read(name)
        if data is None:
            raise DownloadHTTPError(name, 404)
        self.taken[name] = len(data)
        return iter([data])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def judge(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, int]]:
    """A function that refreshes python-tuf's client and looks paths up; returns bytes taken."""

    class At(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.fromtimestamp(bench.now_ms / 1000, UTC)

    class Module:
        datetime, timezone = At, __import__("datetime").timezone

    monkeypatch.setattr(trusted_metadata_set, "datetime", Module)

    def look(catalogue: Catalogue, *paths: str, fresh: bool = False) -> dict[str, int]:
        folder = tmp_path / "client"
        folder.mkdir(exist_ok=True)
        known = (folder / "root.json").exists() and not fresh
        reader = _Reader(catalogue)
        updater = Updater(
            str(folder),
            "http://server/metadata/",
            fetcher=reader,
            bootstrap=None if known else catalogue.read("1.root.json"),
        )
        updater.refresh()
        for path in paths:
            target = updater.get_targetinfo(path)
            assert target is not None, f"nobody vouches for {path}"
            assert target.hashes["sha256"] == Path(path).name.partition(".")[0]
        return reader.taken

    return look


@pytest.fixture
def files() -> Callable[..., list[FileRef]]:
    """Makes a manifest and three files, told apart by a text."""

    def make(text: str) -> list[FileRef]:
        return [
            FileRef(hashlib.sha256(f"{text} {kind}".encode()).hexdigest(), size)
            for kind, size in (("manifest", 40_000), ("model", 9_000_000), ("golden", 1), ("b", 2))
        ]

    return make

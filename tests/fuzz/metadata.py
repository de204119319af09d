"""The device's handling of TUF metadata as a fuzz target: any bytes in the place of any role.

The rest of the repository is real. The attacker holds the mirror, not the keys: what he makes must
end as the step's documented failure, and never as trusted metadata.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from device_agent.shell.metadata_refresh import MetadataRefresh
from fleet_contract.manifest import FileRef, manifest_path
from fleet_contract.trust.keyset import KEYSET_PATH
from fleet_server.trust.catalogue.opening import open_catalogue

NOW_MS = 1_795_000_000_000
ROLES = ["2.root.json", "timestamp.json", "snapshot.json", "targets.json"]
ROLES += ["model.digits.json", "bin"]
PATH = manifest_path("digits", "ab" * 32)


@functools.cache
def repository() -> dict[str, bytes]:
    """The metadata of a fleet with one release, as a mirror shows them."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-metadata-"))
    try:
        catalogue = open_catalogue(
            folder / "trust", may_make=True, random_bytes=os.urandom, now_ms=lambda: NOW_MS
        )
        catalogue.publish_document(KEYSET_PATH, b"{}")
        catalogue.publish("digits", FileRef("ab" * 32, 100), [])
        found = {}
        for role, version in catalogue.versions().items():
            name = "timestamp.json" if role == "timestamp" else f"{version}.{role}.json"
            found[name] = catalogue.read(name) or b""
        return found
    finally:
        shutil.rmtree(folder)


def seeds() -> list[bytes]:
    """One input for each role: its number in front of its real metadata."""
    shown = repository()
    return [
        bytes([number])
        + next((data for name, data in shown.items() if _is(name, role)), shown["1.root.json"])
        for number, role in enumerate(ROLES)
    ]


def _is(name: str, role: str) -> bool:
    return name == role or name.partition(".")[2].startswith(role)


class _Memory:
    """Trusted metadata that are kept nowhere; the root is the pinned one."""

    def load(self, role: str) -> bytes | None:
        return repository()["1.root.json"] if role == "root" else None

    def save(self, role: str, data: bytes) -> None:
        pass


class _Answer:
    def __init__(self, data: bytes | None) -> None:
        self.status = 404 if data is None else 200
        self.length_bytes = None
        self._data = data or b""

    def read(self, limit_bytes: int) -> bytes:
        return self._data[:limit_bytes]


class _Mirror:
    def __init__(self, role: str, data: bytes) -> None:
        self._role = role
        self._data = data

    @contextmanager
    def ask(self, _method: str, path: str, **_: Any) -> Iterator[_Answer]:
        yield _Answer(self._data if _is(path, self._role) else repository().get(path))


def run(data: bytes) -> object:
    """Refresh from a mirror that shows the bytes in the place of the role that the first names."""
    role = ROLES[data[0] % len(ROLES)] if data else ROLES[0]
    body = data[1:]
    refresh = MetadataRefresh(
        _Memory(),  # type: ignore[arg-type]
        _Mirror(role, body),  # type: ignore[arg-type]
        now_ms=NOW_MS,
        ticks_ns=lambda: 0,
    )
    refresh.refresh()
    found = refresh.find(PATH)
    assert found.hashes == {"sha256": "ab" * 32}, "somebody else's word was believed"
    return found

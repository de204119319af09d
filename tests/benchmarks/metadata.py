"""What a device fetches to learn what exists: 5,000 releases in 50 families, against 500.

Counts the bytes of metadata that the agent's own refresh takes from the server's own repository,
for a device that looks up one release: at first contact, after a new release, and when nothing is
new. Also what it costs the server to publish a release, and how long the refresh takes without the
network.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from device_agent.shell.metadata_files import MetadataFiles
from device_agent.shell.metadata_refresh import MetadataRefresh
from fleet_contract.manifest import FileRef, artifact_path, manifest_path
from fleet_contract.trust.keyset import KEYSET_PATH
from fleet_server.trust.catalogue.opening import open_catalogue
from fleet_server.trust.catalogue.repository import Catalogue
from tests.benchmarks.measurement import Measurement

MODELS = 50
FILES_A_RELEASE = 4
MOST_BYTES = 128 * 1024
"""What a device may fetch at one refresh with 5,000 releases: a second at one megabit."""
NOW_MS = 1_795_000_000_000


class _Answer:
    def __init__(self, data: bytes | None) -> None:
        self.status = 404 if data is None else 200
        self.length_bytes = None
        self._data = data or b""

    def read(self, limit_bytes: int) -> bytes:
        assert len(self._data) <= limit_bytes
        return self._data


class _Counter:
    """The server's repository in the place of an HTTP source."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.taken: dict[str, int] = {}

    @contextmanager
    def ask(self, _method: str, path: str, **_: Any) -> Iterator[_Answer]:
        data = self._catalogue.read(path)
        self.taken[path] = len(data or b"")
        yield _Answer(data)


def run() -> list[Measurement]:
    with tempfile.TemporaryDirectory() as folder:
        small = _measure(Path(folder) / "small", 10)
        large = _measure(Path(folder) / "large", 100)
    found = []
    for name, value in large.items():
        unit = "ms" if name.endswith("time") else "bytes"
        # What a device fetches may grow by much less than the releases do (ten times).
        goal = 2.0 if unit == "bytes" else None
        assert unit != "bytes" or value <= MOST_BYTES, f"{name}: {value:.0f} bytes"
        found.append(
            Measurement(
                f"metadata, 5,000 releases of {MODELS} models: {name}",
                value,
                unit,
                "500 releases",
                small[name],
                largest_ratio=goal,
            )
        )
    return found


def _measure(folder: Path, releases: int) -> dict[str, float]:
    catalogue = open_catalogue(
        folder / "trust", may_make=True, random_bytes=os.urandom, now_ms=lambda: NOW_MS
    )
    catalogue.publish_document(KEYSET_PATH, b"{}")
    for number in range(MODELS):
        # All files of a model at once: only the number of targets matters, and it is the same.
        files = [_file(f"{number} {index}") for index in range(releases * FILES_A_RELEASE)]
        catalogue.publish(f"model-{number:02}", files[0], files[1:])
    model = "model-07"
    first = manifest_path(model, _file("7 0").digest), artifact_path(model, _file("7 1").digest)
    device = MetadataFiles(folder / "device")
    device.save("root", catalogue.read("1.root.json") or b"")
    print(f"  {MODELS * releases:,} releases in {MODELS} families, a device's refreshes:")
    found = {"first contact": _refresh(catalogue, device, *first)}
    found["nothing new"] = _refresh(catalogue, device, *first)
    began_s = time.perf_counter()
    manifest, *files = [_file(f"new {index}") for index in range(FILES_A_RELEASE)]
    catalogue.publish(model, manifest, files)
    found["publishing time"] = (time.perf_counter() - began_s) * 1000
    wanted = manifest_path(model, manifest.digest), *(artifact_path(model, f.digest) for f in files)
    # A device fetches all but the baseline.
    found["a new release"] = _refresh(catalogue, device, *wanted[:3])
    times = []
    for _ in range(5):
        began_s = time.perf_counter()
        _refresh(catalogue, device, *wanted[:3])
        times.append((time.perf_counter() - began_s) * 1000)
    found["refresh time"] = statistics.median(times)
    return found


def _refresh(catalogue: Catalogue, device: MetadataFiles, *paths: str) -> float:
    counter = _Counter(catalogue)
    refresh = MetadataRefresh(
        device,
        counter,  # type: ignore[arg-type]
        now_ms=NOW_MS,
        ticks_ns=time.perf_counter_ns,
    )
    refresh.refresh()
    for path in paths:
        refresh.find(path)
    rows = ", ".join(f"{name} {size}" for name, size in counter.taken.items())
    print(f"  {sum(counter.taken.values())} bytes: {rows}")
    return sum(counter.taken.values())


def _file(text: str) -> FileRef:
    return FileRef(hashlib.sha256(text.encode()).hexdigest(), 1_000_000)

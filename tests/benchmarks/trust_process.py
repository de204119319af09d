"""A process like an agent's at its start, with as much of trust as is asked for; prints its cost.

    python tests/benchmarks/trust_process.py none|check|metadata FOLDER

``none``: runtime, MQTT, HTTP and codecs. ``check``: also what every start needs to judge a
directive, and one directive judged. ``metadata``: also a refresh of the stored metadata and a
look-up, which an agent needs for a new release only. A helper of tests/benchmarks/trust.py.
"""

from __future__ import annotations

import http.client
import json
import resource
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import paho.mqtt.client

NEEDED = (http.client, msgspec, np, onnxruntime, paho.mqtt.client)


def directive(folder: Path) -> None:
    from fleet_contract import codec, limits
    from fleet_contract.trust import checks
    from fleet_contract.trust.keyset import Keyset

    checks.check_directive(
        (folder / "directive").read_bytes(),
        keyset=codec.decode_json(
            (folder / "keyset").read_bytes(), Keyset, limit_bytes=limits.ENVELOPE_BYTES
        ),
        audience=checks.Audience("home", "lab", "digits"),
        held=None,
        minimum_epoch=0,
        now_ms=0,
    )


class _Answer:
    def __init__(self, data: bytes | None) -> None:
        self.status = 404 if data is None else 200
        self.length_bytes = None
        self._data = data or b""

    def read(self, _limit_bytes: int) -> bytes:
        return self._data


class _Folder:
    """The files of a repository in the place of an HTTP source."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def ask(self, _method: str, path: str, **_: Any) -> Iterator[_Answer]:
        file = self._folder / path
        yield _Answer(file.read_bytes() if file.exists() else None)


def metadata(folder: Path) -> None:
    from device_agent.shell.metadata_files import MetadataFiles
    from device_agent.shell.metadata_refresh import MetadataRefresh

    refresh = MetadataRefresh(
        MetadataFiles(folder / "device"),
        _Folder(folder / "repository"),  # type: ignore[arg-type]
        now_ms=int((folder / "now_ms").read_text()),
        ticks_ns=time.monotonic_ns,
    )
    refresh.refresh()
    refresh.find((folder / "target").read_text())


def private_bytes() -> int:
    """What this process has for itself: what would be free if it ended."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    ssl.create_default_context()
    # Both kinds of process have the same start: only what follows is trust.
    before_s, before_bytes = time.process_time(), private_bytes()
    if what in ("check", "metadata"):
        directive(folder)
    if what == "metadata":
        metadata(folder)
    print(
        json.dumps(
            {
                "cpu_s": time.process_time(),
                "trust_s": time.process_time() - before_s,
                "trust_bytes": private_bytes() - before_bytes,
                "private_bytes": private_bytes(),
                "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main()

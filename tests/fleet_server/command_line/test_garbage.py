"""Guards from a collection that removes at once, or that says nothing of what it found."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_what_nobody_needs_is_shown_marked_and_removed(
    start_server: Callable[..., Any], clock: Any, edgefleet: Callable[..., Any], tmp_path: Path
) -> None:
    server = start_server(clock, collect_interval_ms=0)
    gc = ["--url", server.settings.url, "model", "gc"]
    said = edgefleet(*gc)
    assert said.code == 0, said
    assert "everything in the store may be needed" in said.out
    file = server.app.state.staging.store.put_artifact("toy", [b"left behind"])
    path = tmp_path / "data" / "store" / "artifacts" / "toy" / file.digest
    os.utime(path, (1, 1))
    shown = edgefleet(*gc, "--dry-run")
    assert f"artifacts/toy/{file.digest}" in shown.out
    assert path.exists()
    marked = json.loads(edgefleet(*gc, "--json").out)
    assert (marked["garbage_files"], marked["removed_files"]) == (1, 0)
    assert marked["garbage"][0]["due_ms"] - marked["garbage"][0]["marked_ms"] == 86_400_000
    assert path.exists()
    clock.wall_ms += 86_400_000
    removed = json.loads(edgefleet(*gc, "--json").out)
    assert (removed["removed_files"], removed["removed_bytes"]) == (1, len(b"left behind"))
    assert not path.exists()
    listed = server.client.get("/v1/audit?count=10").json()["entries"]
    assert {"store.remove", "store.collect"} <= {entry["action"] for entry in listed}

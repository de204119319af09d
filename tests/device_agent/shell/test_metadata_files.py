"""What the device says it holds is what lies on its flash, whatever that is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from device_agent.shell.metadata_files import MetadataFiles, seen
from fleet_contract import limits
from fleet_contract.messages.presence import Seen


def store(files: MetadataFiles, role: str, **signed: Any) -> None:
    files.save(role, json.dumps({"signatures": [], "signed": signed}).encode())


def test_versions_and_families_of_what_is_held(tmp_path: Path) -> None:
    files = MetadataFiles(tmp_path / "metadata")
    assert seen(files) == Seen()
    names = {"targets": 4, "model.digits": 9, "bin.digits-a": 31, "model.Not A Model": 2}
    store(files, "root", version=2, roles={})
    store(files, "timestamp", version=17, meta={"snapshot.json": {"version": 11}})
    store(
        files,
        "snapshot",
        version=11,
        meta={f"{name}.json": {"version": number} for name, number in names.items()},
    )
    assert seen(files) == Seen(root=2, timestamp=17, snapshot=11, targets=31, families=["digits"])


def test_damaged_metadata_counts_as_none(tmp_path: Path) -> None:
    files = MetadataFiles(tmp_path / "metadata")
    files.save("timestamp", b"{")
    store(files, "root", version="two")
    store(files, "snapshot", version=3, meta=[])
    assert seen(files) == Seen()


def test_more_families_than_a_message_may_name(tmp_path: Path) -> None:
    files = MetadataFiles(tmp_path / "metadata")
    meta = {f"model.family-{number:03}.json": {"version": 1} for number in range(300)}
    store(files, "snapshot", version=1, meta=meta)
    assert len(seen(files).families) == limits.FAMILIES

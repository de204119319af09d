"""A repository from a backup: devices that saw more refuse it, until it is raised above that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from tuf.api.exceptions import RepositoryError

from fleet_contract.manifest import artifact_path, manifest_path
from fleet_contract.trust.keyset import KEYSET_PATH
from fleet_server.trust.catalogue import rotation
from fleet_server.trust.catalogue.raising import LEAP, raise_above
from fleet_server.trust.catalogue.repository import Catalogue

Lose = Callable[[], Catalogue]


def publish(catalogue: Catalogue, model: str, files: list[Any]) -> list[str]:
    catalogue.publish(model, files[0], files[1:])
    return [
        manifest_path(model, files[0].digest),
        *(artifact_path(model, file.digest) for file in files[1:]),
    ]


def highest(catalogue: Catalogue) -> dict[str, int]:
    versions = catalogue.versions()
    top = {role: versions.pop(role) for role in ("root", "timestamp", "snapshot")}
    return {**top, "targets": max(versions.values())}


@pytest.fixture
def lost(bench: Any, judge: Any, files: Any) -> tuple[dict[str, int], Catalogue, list[str]]:
    """What devices have seen, the repository of the backup, and what it vouches for."""
    catalogue = bench.open()
    paths = publish(catalogue, "digits", files("one"))
    shutil.copytree(bench.folder / "trust", bench.folder / "backup")
    for number in range(4):
        publish(catalogue, "digits", files(f"more {number}"))
    for family in ("later", "even-later"):
        publish(catalogue, family, files(family))
    catalogue.publish_document(KEYSET_PATH, b"{}")
    judge(catalogue)
    seen = highest(catalogue)
    shutil.rmtree(bench.folder / "trust")
    (bench.folder / "backup").rename(bench.folder / "trust")
    return seen, bench.open(may_make=False), paths


def test_device_that_saw_more_refuses_the_backup(judge: Any, lost: Any) -> None:
    _, restored, paths = lost
    with pytest.raises(RepositoryError):
        judge(restored, *paths)


def test_device_that_saw_more_finds_everything_again(
    bench: Any, judge: Any, files: Any, lost: Any
) -> None:
    seen, restored, paths = lost
    assert raise_above(restored, seen, ["digits", "even-later", "later"]) == []
    judge(restored, *paths)
    # A family that was lost can be used again, and a newcomer sees the same as the others.
    again = publish(restored, "later", files("again"))
    judge(bench.open(may_make=False), *paths, *again)
    judge(restored, *paths, *again, fresh=True)


def test_family_that_is_not_named_is_missed(judge: Any, lost: Any) -> None:
    seen, restored, paths = lost
    raise_above(restored, seen, ["digits", "later"])
    with pytest.raises(RepositoryError, match="even-later"):
        judge(restored, *paths)


def test_device_that_was_silent_has_seen_a_little_more(bench: Any, judge: Any, lost: Any) -> None:
    seen, restored, paths = lost
    told = {role: version // 2 for role, version in seen.items()}
    raise_above(restored, told, ["digits", "even-later", "later"])
    judge(restored, *paths)
    assert min(highest(restored)[role] for role in ("timestamp", "snapshot", "targets")) > LEAP


def test_no_two_files_share_a_version(lost: Any) -> None:
    seen, restored, _ = lost
    raise_above(restored, seen, ["later"])
    versions = restored.versions()
    targets = [
        version
        for role, version in versions.items()
        if role not in {"root", "timestamp", "snapshot"}
    ]
    assert len(set(targets)) == len(targets)
    assert min(targets) > seen["targets"]


def test_key_that_is_elsewhere_is_named(bench: Any, lost: Any) -> None:
    seen, _, _ = lost
    listed = bench.folder / "trust" / "keys" / "signers.json"
    keys = json.loads(listed.read_text())
    for key in keys["targets"]:
        key["uri"] = ""
    listed.write_text(json.dumps(keys))
    restored = bench.open(may_make=False)
    assert raise_above(restored, seen, ["later"]) == ["targets"]
    assert restored.versions()["timestamp"] > seen["timestamp"]
    # Without that key no family can be made, and nothing was half made.
    assert "model.later" not in restored.versions()


@pytest.mark.parametrize("role", ["snapshot", "timestamp", "targets"])
def test_keys_that_were_given_after_the_backup_and_lost(
    bench: Any, judge: Any, files: Any, role: str
) -> None:
    """Devices trust a root that names them; the same root keys can sign one above it."""

    def rotate(catalogue: Catalogue) -> None:
        if role == "targets":
            assert rotation.rotate_top(catalogue, role, [], 1)
        else:
            assert rotation.rotate_online(catalogue, role)

    catalogue = bench.open()
    paths = publish(catalogue, "digits", files("one"))
    shutil.copytree(bench.folder / "trust", bench.folder / "backup")
    rotate(catalogue)
    judge(catalogue, *paths)
    seen = highest(catalogue)
    shutil.rmtree(bench.folder / "trust")
    (bench.folder / "backup").rename(bench.folder / "trust")
    restored = bench.open(may_make=False)
    rotate(restored)
    # Another root of the version that devices trust: they see neither it nor what it names.
    raise_above(restored, seen, ["digits"])
    with pytest.raises(RepositoryError):
        judge(restored, *paths)
    rotate(restored)
    judge(restored, *paths)
    judge(bench.open(may_make=False), *paths)

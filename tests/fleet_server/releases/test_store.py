"""Guards from half-written files, and from paths that lead out of the store."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_contract.manifest import artifact_path, manifest_path
from fleet_server.errors import Invalid
from fleet_server.releases.store import Store

DIGEST = "a" * 64


def test_file_is_found_under_the_hash_of_its_bytes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = store.put_artifact("detector", [b"one", b"two"])
    assert file.digest == hashlib.sha256(b"onetwo").hexdigest()
    assert file.size_bytes == 6
    found = store.find(artifact_path("detector", file.digest))
    assert found is not None and found.path.read_bytes() == b"onetwo"
    manifest = store.put_manifest("detector", b"{}")
    found = store.find(manifest_path("detector", manifest.digest))
    assert found is not None and found.path.read_bytes() == b"{}"
    assert store.find(manifest_path("other", manifest.digest)) is None


def test_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.put_artifact("detector", chunks())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_killed_while_writing_is_swept_at_the_next_start(tmp_path: Path) -> None:
    Store(tmp_path)
    (tmp_path / "fresh" / "leftover").write_bytes(b"half")
    Store(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_damaged_file_is_replaced_by_a_second_push(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = store.put_artifact("detector", [b"good"])
    path = tmp_path / artifact_path("detector", file.digest)
    path.write_bytes(b"bad")
    assert store.put_artifact("detector", [b"good"]) == file
    assert path.read_bytes() == b"good"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "artifacts/",
        f"artifacts/{DIGEST}",
        f"artifacts/../{DIGEST}",
        f"artifacts/detector/{DIGEST}/",
        f"artifacts/a/b/{DIGEST}",
        f"artifacts/detector/{DIGEST}\n",
        f"artifacts/detector/{DIGEST.upper()}",
        f"artifacts/../artifacts/detector/{DIGEST}",
        f"/artifacts/detector/{DIGEST}",
        f"manifests/../{DIGEST}.json",
        f"manifests/a/b/{DIGEST}.json",
        f"manifests/detector/{DIGEST}.jsonx",
        f"manifests/./{DIGEST}.json",
        "fresh/leftover",
        "../fleet.sqlite",
        "../../../etc/passwd",
        f"artifacts\\{DIGEST}",
        f"artifacts/detector/{DIGEST}\x00.txt",
    ],
)
def test_path_of_no_known_form(tmp_path: Path, path: str) -> None:
    with pytest.raises(Invalid):
        Store(tmp_path / "store").find(path)

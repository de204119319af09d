"""Guards the object store from objects of files that are gone, and files from having none."""

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet_contract.manifest import artifact_path
from fleet_server import object_store
from fleet_server.errors import StartError, Unavailable
from fleet_server.object_store import ObjectStore, open_object_store
from fleet_server.releases import mirror
from fleet_server.releases.mirroring import Mirroring
from fleet_server.releases.store import Store


class Bucket:
    """A folder behind the same library, of which single calls can be made to fail."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.broken: set[str] = set()
        opened = open_object_store(f"file://{folder}")
        assert opened is not None
        self.objects = opened
        for name in ("put", "remove", "sizes"):
            monkeypatch.setattr(opened, name, self._watched(name, getattr(opened, name)))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any) -> Any:
            if name in self.broken:
                raise Unavailable("object_store_failed", "broken")
            return call(*arguments)

        return watched

    def held(self) -> list[str]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in files)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    return Bucket(tmp_path / "bucket", monkeypatch)


@pytest.fixture
def store(tmp_path: Path, bucket: Bucket) -> Store:
    return Store(tmp_path / "data" / "store", bucket.objects)


def files_of(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_artifact_is_there_too_and_nothing_else_is(store: Store, bucket: Bucket) -> None:
    file = store.put_artifact("detector", [b"weights"])
    store.put_manifest("detector", b"{}")
    store.put_provenance("detector", b"{}")
    store.put_card("detector", b"{}")
    assert bucket.held() == [f"store/artifacts/detector/{file.digest}"]
    assert (bucket.folder / bucket.held()[0]).read_bytes() == b"weights"


def test_failed_put_leaves_nothing_on_either_side(
    tmp_path: Path, store: Store, bucket: Bucket
) -> None:
    bucket.broken = {"put"}
    with pytest.raises(Unavailable):
        store.put_artifact("detector", [b"weights"])
    assert list(store.files()) == []
    bucket.broken = set()
    Mirroring([store]).look(listing=True)
    assert (bucket.held(), files_of(tmp_path)) == ([], [])
    store.put_artifact("detector", [b"weights"])
    assert len(bucket.held()) == 1


def test_killed_between_object_and_file(
    tmp_path: Path, store: Store, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(store, "_name", killed)
    with pytest.raises(Killed):
        store.put_artifact("detector", [b"weights"])
    assert len(bucket.held()) == 1
    again = Store(tmp_path / "data" / "store", bucket.objects)
    Mirroring([again]).look(listing=False)
    assert (bucket.held(), files_of(tmp_path)) == ([], [])


def test_object_goes_after_its_file_also_when_that_fails_first(
    tmp_path: Path, store: Store, bucket: Bucket
) -> None:
    file = store.put_artifact("detector", [b"weights"])
    kept = store.put_artifact("detector", [b"others"])
    assert store.remove(artifact_path("detector", file.digest))
    assert len(bucket.held()) == 2
    bucket.broken = {"remove"}
    Mirroring([store]).look(listing=False)
    assert len(bucket.held()) == 2
    bucket.broken = set()
    # A server that was stopped in between does what the one before did not.
    Mirroring([Store(tmp_path / "data" / "store", bucket.objects)]).look(listing=False)
    assert bucket.held() == [f"store/artifacts/detector/{kept.digest}"]


def test_file_put_again_before_its_object_went_keeps_it(store: Store, bucket: Bucket) -> None:
    file = store.put_artifact("detector", [b"weights"])
    store.remove(artifact_path("detector", file.digest))
    store.put_artifact("detector", [b"weights"])
    Mirroring([store]).look(listing=False)
    assert len(bucket.held()) == 1
    # And where the file came in between, but the note of its going stayed.
    assert store.mirror is not None
    store.mirror.unsettle(artifact_path("detector", file.digest))
    Mirroring([store]).look(listing=False)
    assert len(bucket.held()) == 1


def test_file_that_stays_keeps_its_object(store: Store, bucket: Bucket) -> None:
    file = store.put_artifact("detector", [b"weights"])
    assert not store.remove(artifact_path("detector", file.digest), not_since_ms=0)
    Mirroring([store]).look(listing=True)
    assert len(bucket.held()) == 1


def test_what_was_there_before_is_put_at_the_start(tmp_path: Path, bucket: Bucket) -> None:
    bare = Store(tmp_path / "data" / "store")
    file = bare.put_artifact("detector", [b"weights"])
    bare.put_manifest("detector", b"{}")
    store = Store(tmp_path / "data" / "store", bucket.objects)
    bucket.broken = {"sizes"}
    with pytest.raises(Unavailable):
        Mirroring([store]).look(listing=True)
    bucket.broken = set()
    Mirroring([store]).look(listing=True)
    assert bucket.held() == [f"store/artifacts/detector/{file.digest}"]
    # One that is gone, or is not as long as it should be, comes again.
    (bucket.folder / bucket.held()[0]).write_bytes(b"cut")
    Mirroring([store]).look(listing=True)
    assert (bucket.folder / bucket.held()[0]).read_bytes() == b"weights"


def test_who_may_not_remove_still_puts_and_lends(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket.objects, "lend", lambda key: f"https://bucket/{key}")
    bare = Store(tmp_path / "data" / "store")
    gone, kept = (bare.put_artifact("detector", [data]).digest for data in (b"gone", b"kept"))
    store = Store(tmp_path / "data" / "store", bucket.objects)
    assert store.mirror is not None
    store.remove(artifact_path("detector", gone))
    bucket.broken = {"remove"}
    Mirroring([store]).look(listing=True)
    assert bucket.held() == [f"store/artifacts/detector/{kept}"]
    assert store.mirror.lend(artifact_path("detector", kept))


def test_objects_of_others_are_not_touched(store: Store, bucket: Bucket) -> None:
    stranger = bucket.folder / "store" / "artifacts" / "detector" / ("a" * 64)
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"of another server")
    store.put_artifact("detector", [b"weights"])
    Mirroring([store]).look(listing=True)
    assert stranger.read_bytes() == b"of another server"


def test_only_what_was_seen_there_is_lent(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket.objects, "lend", lambda key: f"https://bucket/{key}")
    path = artifact_path(
        "detector", Store(tmp_path / "store").put_artifact("detector", [b"a"]).digest
    )
    store = Store(tmp_path / "store", bucket.objects)
    assert isinstance(store.mirror, mirror.Mirror)
    assert store.mirror.lend(path) is None
    Mirroring([store]).look(listing=True)
    assert store.mirror.lend(path) == f"https://bucket/store/{path}"
    store.remove(path)
    Mirroring([store]).look(listing=False)
    assert store.mirror.lend(path) is None


def test_file_url_lends_nothing(store: Store) -> None:
    file = store.put_artifact("detector", [b"weights"])
    assert store.mirror is not None
    assert store.mirror.lend(artifact_path("detector", file.digest)) is None


@pytest.mark.parametrize(
    "url",
    [
        *("bucket", "http://host/bucket", "s3://", "ftp://host/x", "memory:///"),
        *("s3://key:secret@bucket/x", "s3://bucket/x?secret=y"),
    ],
)
def test_url_that_means_nothing(url: str) -> None:
    with pytest.raises(StartError) as caught:
        open_object_store(url)
    assert caught.value.code == "bad_setting"
    assert "secret" not in f"{caught.value.detail}{caught.value.advice}"


def test_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("obstore"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StartError, match="not installed"):
        open_object_store("s3://bucket")
    assert open_object_store("") is None


def test_errors_of_the_library_hold_no_secret() -> None:
    class Failing:
        def put(self, *_: object, **__: object) -> None:
            raise OSError("secret")

    with pytest.raises(Unavailable) as caught:
        ObjectStore(Failing(), lends=False).put("key", Path("x"))
    assert "secret" not in caught.value.detail
    assert object_store.LENT_S <= 900


@pytest.mark.slow
def test_release_is_refused_if_the_object_store_takes_nothing(
    bench: Any, tmp_path: Path, bucket: Bucket
) -> None:
    staging = bench.new_staging()
    staging.store = Store(tmp_path / "store", bucket.objects)
    bucket.broken = {"put"}
    bench.register(bench.upload())
    staging.start()
    try:
        found = bench.settled()
        assert (found.state, found.problem.code) == ("refused", "object_store_failed")
        assert bench.stored() == []
        bucket.broken = set()
        staging.submit("detector", bench.register(bench.upload()).version)
        found = bench.settled()
        assert found.state == "staged"
        artifact = found.manifest.variants[-1].artifact.digest
        assert f"store/artifacts/detector/{artifact}" in bucket.held()
    finally:
        staging.stop()

"""Patches from a broken or hostile server, and onto a broken disk: right, or downloaded whole."""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from device_agent.shell.clock import SystemClock
from device_agent.shell.download import WORTH_RESUMING_BYTES, Wanted, download
from device_agent.shell.following import Origins
from device_agent.shell.http_source import Canceled, HttpSource
from device_agent.shell.patching import MOST_BASES, download_by_patch
from device_agent.shell.release_files import artifacts_of
from device_agent.shell.store import Store
from fleet_contract.deltas.form import GROUP_BYTES, Header, Kind, Operation, patch_path
from fleet_contract.deltas.writer import PatchWriter
from fleet_contract.manifest import FileRef, artifact_path
from tests.device_agent.shell.toy_fleet import MODEL, ToyFleet
from tests.device_agent.shell.toy_web import Handler

PIECE = GROUP_BYTES
OLD = os.urandom(4 * PIECE)
NEW = OLD[:PIECE] + os.urandom(2 * PIECE) + OLD[3 * PIECE :]


def never() -> bool:
    return False


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def patch_between(old: bytes = OLD, new: bytes = NEW) -> bytes:
    written = bytearray()
    header = Header(digest_of(old), digest_of(new), len(old), len(new))
    writer = PatchWriter(header, old, new, written.extend, level=1)
    writer.add(Operation(Kind.COPY, 1, PIECE, 0))
    writer.add(Operation(Kind.LITERAL, 1, PIECE))
    writer.add(Operation(Kind.SUBTRACT, 4, PIECE, 2 * PIECE))
    writer.add(Operation(Kind.COPY, 1, PIECE, 3 * PIECE))
    writer.finish()
    return bytes(written)


PATCH = patch_between()
PATH = patch_path(digest_of(OLD), digest_of(NEW))


@pytest.fixture
def file(web: ToyFleet) -> Wanted:
    """The new artifact, whole on the server, with a patch to it."""
    ref = web.put_file(NEW)
    web.files[PATH] = PATCH
    return Wanted(
        ref.digest, ref.size_bytes, artifact_path(MODEL, ref.digest), {"sha256": ref.digest}
    )


@pytest.fixture
def base(store: Store) -> FileRef:
    """The old artifact, in the device's store."""
    store.artifact(digest_of(OLD)).write_bytes(OLD)
    return FileRef(digest_of(OLD), len(OLD))


@pytest.fixture
def source(web: ToyFleet) -> HttpSource:
    return HttpSource(f"{web.url}/v1/store", ticks_ns=SystemClock().ticks_ns)


def is_whole(store: Store, file: Wanted) -> bool:
    path = store.artifact(file.digest)
    return path.exists() and path.read_bytes() == NEW


def leftovers(store: Store) -> list[str]:
    return [path.name for path in (store.folder / "partial").iterdir()]


def refuses_and_downloads(
    source: HttpSource, store: Store, file: Wanted, base: FileRef, caplog: pytest.LogCaptureFixture
) -> str:
    """Check that a patch is given up without a trace, and the whole file still comes."""
    with caplog.at_level(logging.WARNING):
        assert not download_by_patch(source, store, file, [base], never)
    assert not store.artifact(file.digest).exists()
    assert leftovers(store) == []
    download(source, store, file, never)
    assert is_whole(store, file)
    return caplog.text


def test_patched_without_the_whole_file(
    web: ToyFleet, source: HttpSource, store: Store, file: Wanted, base: FileRef
) -> None:
    assert download_by_patch(source, store, file, [base], never)
    assert is_whole(store, file)
    assert web.requests == [(PATH, None)]
    assert leftovers(store) == []
    # What is here already is not asked for again.
    assert not download_by_patch(source, store, file, [base], never)
    assert len(web.requests) == 1


def test_no_patch_costs_one_question_each(
    web: ToyFleet, source: HttpSource, store: Store, file: Wanted, base: FileRef
) -> None:
    del web.files[PATH]
    others = [FileRef(digest_of(bytes([number])), 1) for number in range(9)]
    assert not download_by_patch(source, store, file, [base, *others], never)
    assert len(web.requests) == MOST_BASES


def test_second_base_is_used(
    web: ToyFleet, source: HttpSource, store: Store, file: Wanted, base: FileRef
) -> None:
    other = FileRef(digest_of(b"other"), 5)
    assert download_by_patch(source, store, file, [other, base], never)
    assert is_whole(store, file)


def test_broken_connection_is_resumed(
    web: ToyFleet, source: HttpSource, store: Store, file: Wanted, base: FileRef
) -> None:
    cut_at = WORTH_RESUMING_BYTES + 1000

    def cut(handler: Handler) -> bool:
        if handler.headers.get("Range"):
            return False
        return send(handler, PATCH[:cut_at], len(PATCH))

    web.misbehave[PATH] = cut
    assert download_by_patch(source, store, file, [base], never)
    assert is_whole(store, file)
    assert web.requests == [(PATH, None), (PATH, f"bytes={cut_at}-")]


def send(handler: Handler, body: bytes, length: int | None, status: int = 200) -> bool:
    handler.send_response(status)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(body)
    return True


@pytest.mark.parametrize(
    ("what", "misbehave"),
    [
        ("an error", lambda handler: send(handler, b"", 0, 500)),
        ("nothing", lambda handler: send(handler, b"", 0)),
        ("no length", lambda handler: send(handler, PATCH, None)),
        ("cut", lambda handler: send(handler, PATCH[:500], len(PATCH))),
        ("too long", lambda handler: send(handler, PATCH + b"x", len(PATCH) + 1)),
        ("noise", lambda handler: send(handler, os.urandom(5000), 5000)),
        ("for other files", lambda handler: send(handler, *sized(patch_between(OLD, OLD)))),
        ("damaged", lambda handler: send(handler, *sized(PATCH[:-9] + bytes(9)))),
    ],
)
def test_bad_patch_is_given_up_and_the_file_downloaded(
    web: ToyFleet,
    source: HttpSource,
    store: Store,
    file: Wanted,
    base: FileRef,
    caplog: pytest.LogCaptureFixture,
    what: str,
    misbehave: Callable[[Handler], bool],
) -> None:
    web.misbehave[PATH] = misbehave
    assert "is not patched" in refuses_and_downloads(source, store, file, base, caplog), what


def sized(data: bytes) -> tuple[bytes, int]:
    return data, len(data)


def test_patch_that_makes_another_file_is_never_completed(
    web: ToyFleet,
    source: HttpSource,
    store: Store,
    file: Wanted,
    base: FileRef,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its header lies: what it makes is well-formed, of the right length, and not the artifact."""
    forged = NEW[:-1] + bytes([NEW[-1] ^ 1])
    header = Header(digest_of(OLD), digest_of(NEW), len(OLD), len(NEW)).write()
    web.files[PATH] = header + patch_between(OLD, forged[:-PIECE] + OLD[-PIECE:])[len(header) :]
    store.artifact(base.digest).write_bytes(OLD[:-1] + bytes([OLD[-1] ^ 1]))
    assert "wrong_hash" in refuses_and_downloads(source, store, file, base, caplog)


def test_base_cut_short_on_the_disk(
    source: HttpSource, store: Store, file: Wanted, base: FileRef, caplog: pytest.LogCaptureFixture
) -> None:
    store.artifact(base.digest).write_bytes(OLD[: 3 * PIECE])
    assert "wrong_size" in refuses_and_downloads(source, store, file, base, caplog)


def test_base_that_is_a_link_is_not_followed(
    source: HttpSource,
    store: Store,
    file: Wanted,
    base: FileRef,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "elsewhere").write_bytes(OLD)
    store.artifact(base.digest).unlink()
    store.artifact(base.digest).symlink_to(tmp_path / "elsewhere")
    refuses_and_downloads(source, store, file, base, caplog)


def test_larger_than_what_is_left_to_download_is_not_taken(
    web: ToyFleet, source: HttpSource, store: Store, file: Wanted, base: FileRef
) -> None:
    store.partial(file.digest).write_bytes(NEW[:-1000])
    assert not download_by_patch(source, store, file, [base], never)
    assert store.partial(file.digest).read_bytes() == NEW[:-1000]
    download(source, store, file, never)
    assert web.requests[-1] == (file.address, f"bytes={len(NEW) - 1000}-")


def test_canceled_midway_leaves_nothing(
    source: HttpSource, store: Store, file: Wanted, base: FileRef
) -> None:
    def canceled() -> bool:
        path = store.patched(file.digest)
        return path.exists() and path.stat().st_size > 0

    with pytest.raises(Canceled):
        download_by_patch(source, store, file, [base], canceled)
    assert leftovers(store) == []
    assert not store.artifact(file.digest).exists()


def test_killed_midway_the_rest_is_written_over(
    source: HttpSource, store: Store, file: Wanted, base: FileRef
) -> None:
    """After a power cut something half lies there, as long or as wrong as it likes."""
    store.patched(file.digest).write_bytes(b"x" * (2 * len(NEW)))
    assert download_by_patch(source, store, file, [base], never)
    assert is_whole(store, file)
    store.patched(digest_of(b"gone")).write_bytes(b"x")
    store.patched(file.digest).write_bytes(b"in use by a worker")
    store.sweep([file.digest])
    assert leftovers(store) == [f"{file.digest}.patched"]


def test_full_disk_is_no_reason_to_fail_twice(
    web: ToyFleet, tmp_path: Path, source: HttpSource, file: Wanted
) -> None:
    store = Store(tmp_path / "small", quota_bytes=len(OLD) + 1000, reserve_bytes=0)
    store.artifact(digest_of(OLD)).write_bytes(OLD)
    assert not download_by_patch(source, store, file, [FileRef(digest_of(OLD), len(OLD))], never)
    assert leftovers(store) == []


def test_artifacts_of_the_model_the_newest_first(web: ToyFleet, store: Store) -> None:
    for version, opset in (("1.0.0", 13), ("3.0.0", 15), ("2.0.0", 14)):
        reference = web.release(version, opset=opset)
        store.save_manifest(reference.digest, web.files[reference.manifest])
        if version != "2.0.0":
            path = web.artifact_of(opset)
            store.artifact(path.rpartition("/")[2]).write_bytes(web.files[path])
    store.save_manifest(digest_of(b"no manifest"), b"no manifest")
    expected = [web.artifact_of(opset).rpartition("/")[2] for opset in (15, 13)]
    assert [file.digest for file in artifacts_of(store, MODEL)] == expected
    assert artifacts_of(store, "another") == []


@pytest.mark.parametrize("there", [PATCH, None, PATCH[:-1], b"noise"])
def test_patch_where_the_server_leads_to(
    web: ToyFleet, store: Store, file: Wanted, base: FileRef, there: bytes | None
) -> None:
    bucket = ToyFleet(with_broker=False)
    try:
        if there is not None:
            bucket.files[PATH] = there

        def lead(handler: Handler) -> bool:
            if handler.headers.get("X-Edgefleet-Follow") != "1":
                return False
            handler.answer(307, b"", {"Location": f"{bucket.url}/v1/store/{PATH}"})
            return True

        web.misbehave[PATH] = lead
        ticks_ns = SystemClock().ticks_ns
        leads = Origins([bucket.url], ticks_ns=ticks_ns).find
        source = HttpSource(f"{web.url}/v1/store", ticks_ns=ticks_ns, leads=leads)
        # One that is missing there comes from the server; a wrong one costs the shortcut.
        patched = download_by_patch(source, store, file, [base], never)
        assert patched == (there in (PATCH, None))
        download(source, store, file, never)
        assert is_whole(store, file)
        assert [path for path, _ in bucket.requests] == [PATH] * len(bucket.requests) != []
    finally:
        bucket.close()

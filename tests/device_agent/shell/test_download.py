"""Downloads from a server that is broken, slow or hostile."""

import hashlib
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from device_agent.errors import StepFailed
from device_agent.shell.clock import SystemClock
from device_agent.shell.download import WORTH_RESUMING_BYTES, Wanted, download
from device_agent.shell.http_source import Canceled, HttpSource
from device_agent.shell.store import Store
from fleet_contract.errors import Reason
from fleet_contract.manifest import artifact_path
from tests.device_agent.shell.toy_fleet import MODEL, ToyFleet
from tests.device_agent.shell.toy_web import Handler

DATA = os.urandom(400_000)


def never() -> bool:
    return False


def source_of(web: ToyFleet, **options: float) -> HttpSource:
    clock = SystemClock()
    return HttpSource(f"{web.url}/v1/store", ticks_ns=clock.ticks_ns, **options)  # type: ignore[arg-type]


def put(web: ToyFleet, data: bytes) -> Wanted:
    file = web.put_file(data)
    address = artifact_path(MODEL, file.digest)
    return Wanted(file.digest, file.size_bytes, address, {"sha256": file.digest})


def stranger(digest: str) -> Wanted:
    return Wanted(digest, 10, f"artifacts/{MODEL}/{digest}", {"sha256": digest})


@pytest.fixture
def file(web: ToyFleet) -> Wanted:
    return put(web, DATA)


def partial_of(store: Store, file: Wanted) -> bytes:
    path = store.partial(file.digest)
    return path.read_bytes() if path.exists() else b""


def fails(reason: Reason, *arguments: object) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        download(*arguments)  # type: ignore[arg-type]
    assert caught.value.reason is reason, caught.value.detail
    return caught.value


def send(handler: Handler, body: bytes, *, length: int | None, status: int = 200) -> bool:
    handler.send_response(status)
    if length is not None:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(body)
    return True


def test_file_comes_whole(web: ToyFleet, store: Store, file: Wanted) -> None:
    download(source_of(web), store, file, never)
    assert store.artifact(file.digest).read_bytes() == DATA
    assert not store.partial(file.digest).exists()


def test_empty_file(web: ToyFleet, store: Store) -> None:
    empty = put(web, b"")
    download(source_of(web), store, empty, never)
    assert store.artifact(empty.digest).read_bytes() == b""


def test_connection_broken_midway_is_resumed_at_once(
    web: ToyFleet, store: Store, file: Wanted
) -> None:
    path = file.address

    def cut(handler: Handler) -> bool:
        if handler.headers.get("Range"):
            return False
        return send(handler, DATA[:300_000], length=len(DATA))

    web.misbehave[path] = cut
    download(source_of(web), store, file, never)
    assert store.artifact(file.digest).read_bytes() == DATA
    assert web.requests == [(path, None), (path, "bytes=300000-")]


def test_truncated_download_is_kept_for_the_next_try(
    web: ToyFleet, store: Store, file: Wanted
) -> None:
    path = file.address
    web.misbehave[path] = lambda handler: send(handler, DATA[:1000], length=len(DATA))
    fails(Reason.DOWNLOAD_FAILED, source_of(web), store, file, never)
    assert partial_of(store, file) == DATA[:1000]
    assert not store.artifact(file.digest).exists()
    web.misbehave.clear()
    download(source_of(web), store, file, never)
    assert web.requests[-1] == (path, "bytes=1000-")
    assert store.artifact(file.digest).read_bytes() == DATA


def test_damaged_partial_file_is_thrown_away(web: ToyFleet, store: Store, file: Wanted) -> None:
    store.partial(file.digest).write_bytes(b"x" * 1000)
    fails(Reason.WRONG_HASH, source_of(web), store, file, never)
    assert not store.partial(file.digest).exists()
    download(source_of(web), store, file, never)
    assert store.artifact(file.digest).read_bytes() == DATA


def test_partial_file_longer_than_the_file(web: ToyFleet, store: Store, file: Wanted) -> None:
    store.partial(file.digest).write_bytes(DATA + b"more")
    download(source_of(web), store, file, never)
    assert store.artifact(file.digest).read_bytes() == DATA


def test_complete_partial_file_needs_no_request(web: ToyFleet, store: Store, file: Wanted) -> None:
    store.partial(file.digest).write_bytes(DATA)
    download(source_of(web), store, file, never)
    assert web.requests == []
    assert store.artifact(file.digest).read_bytes() == DATA


@pytest.mark.parametrize("status", [200, 416])
def test_server_that_cannot_resume(web: ToyFleet, store: Store, file: Wanted, status: int) -> None:
    def ignore_range(handler: Handler) -> bool:
        if not handler.headers.get("Range"):
            return False
        body = DATA if status == 200 else b""
        return send(handler, body, length=len(body), status=status)

    web.misbehave[file.address] = ignore_range
    store.partial(file.digest).write_bytes(DATA[:5000])
    download(source_of(web), store, file, never)
    assert store.artifact(file.digest).read_bytes() == DATA


def test_another_range_than_asked_for(web: ToyFleet, store: Store, file: Wanted) -> None:
    def shifted(handler: Handler) -> bool:
        handler.answer(
            206, DATA[4000:], {"Content-Range": f"bytes 4000-{len(DATA) - 1}/{len(DATA)}"}
        )
        return True

    web.misbehave[file.address] = shifted
    store.partial(file.digest).write_bytes(DATA[:5000])
    fails(Reason.DOWNLOAD_FAILED, source_of(web), store, file, never)
    assert partial_of(store, file) == DATA[:5000]


def test_wrong_content(web: ToyFleet, store: Store, file: Wanted) -> None:
    web.files[file.address] = bytes(len(DATA))
    fails(Reason.WRONG_HASH, source_of(web), store, file, never)
    assert not store.artifact(file.digest).exists()
    assert not store.partial(file.digest).exists()


def test_announced_too_long_is_not_read(web: ToyFleet, store: Store, file: Wanted) -> None:
    web.files[file.address] = DATA + b"more"
    fails(Reason.WRONG_SIZE, source_of(web), store, file, never)
    assert partial_of(store, file) == b""


def test_endless_body_is_broken_off(web: ToyFleet, store: Store, file: Wanted) -> None:
    sent = [0]

    def endless(handler: Handler) -> bool:
        handler.send_response(200)
        handler.end_headers()
        while sent[0] < 1 << 30:
            handler.wfile.write(DATA)
            sent[0] += len(DATA)
        return True

    web.misbehave[file.address] = endless
    fails(Reason.WRONG_SIZE, source_of(web), store, file, never)
    assert partial_of(store, file) == b""
    assert sent[0] < 1 << 30


def test_slow_body_is_broken_off(web: ToyFleet, store: Store, file: Wanted) -> None:
    done = threading.Event()

    def drip(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.end_headers()
        for byte in DATA:
            handler.wfile.write(bytes([byte]))
            if done.wait(0.05):
                break
        return True

    web.misbehave[file.address] = drip
    began = time.monotonic()
    patient = source_of(web, headers_s=0.5, least_rate=1 << 20)
    try:
        failed = fails(Reason.DOWNLOAD_FAILED, patient, store, file, never)
    finally:
        done.set()
    assert "too slow" in failed.detail
    # At this pace the file takes hours, and by the usual bounds two minutes are waited for it.
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nX-Long: "])
def test_headers_that_never_end(web: ToyFleet, store: Store, file: Wanted, head: bytes) -> None:
    done = threading.Event()

    def silent(handler: Handler) -> bool:
        handler.wfile.write(head)
        while not done.wait(0.05):
            handler.wfile.write(b"x" if head else b"")
        return True

    web.misbehave[file.address] = silent
    impatient = source_of(web, headers_s=0.6, least_rate=1 << 30, stall_s=0.6)
    try:
        fails(Reason.DOWNLOAD_FAILED, impatient, store, file, never)
    finally:
        done.set()


def test_nonsense_instead_of_an_answer(web: ToyFleet, store: Store, file: Wanted) -> None:
    def nonsense(handler: Handler) -> bool:
        handler.wfile.write(b"\x00\xff nonsense\r\n\r\n")
        return True

    web.misbehave[file.address] = nonsense
    fails(Reason.DOWNLOAD_FAILED, source_of(web), store, file, never)


def test_redirect_is_not_followed(web: ToyFleet, store: Store, file: Wanted) -> None:
    def redirect(handler: Handler) -> bool:
        handler.answer(302, b"", {"Location": f"{web.url}/elsewhere"})
        return True

    web.misbehave[file.address] = redirect
    fails(Reason.DOWNLOAD_FAILED, source_of(web), store, file, never)
    assert [path for path, _ in web.requests] == [file.address]


def test_no_server(store: Store, free_port: int) -> None:
    source = HttpSource(f"http://127.0.0.1:{free_port}", ticks_ns=SystemClock().ticks_ns)
    fails(Reason.DOWNLOAD_FAILED, source, store, stranger("a" * 64), never)


def test_canceled_download_ends_at_once_and_keeps_what_came(
    web: ToyFleet, store: Store, file: Wanted
) -> None:
    done, canceled = threading.Event(), threading.Event()

    def stall(handler: Handler) -> bool:
        send(handler, DATA[:WORTH_RESUMING_BYTES], length=len(DATA))
        canceled.set()
        done.wait(300)
        return True

    web.misbehave[file.address] = stall
    patient = source_of(web, headers_s=600, stall_s=600)
    began = time.monotonic()
    try:
        with pytest.raises(Canceled):
            download(patient, store, file, canceled.is_set)
    finally:
        done.set()
    assert time.monotonic() - began < 60
    assert DATA.startswith(partial_of(store, file))


def test_quota_refuses_before_a_byte_is_asked_for(web: ToyFleet, tmp_path: Path) -> None:
    file = put(web, DATA)
    small = Store(tmp_path / "small", quota_bytes=100_000, reserve_bytes=0)
    fails(Reason.DISK_FULL, source_of(web), small, file, never)
    assert web.requests == []


def test_disk_without_room(web: ToyFleet, tmp_path: Path) -> None:
    file = put(web, DATA)
    crowded = Store(tmp_path / "crowded", reserve_bytes=1 << 60)
    fails(Reason.DISK_FULL, source_of(web), crowded, file, never)


_LIMITED = """
import resource, signal, sys
from pathlib import Path
from device_agent.errors import StepFailed
from device_agent.shell.clock import SystemClock
from device_agent.shell.download import Wanted, download
from device_agent.shell.http_source import HttpSource
from device_agent.shell.store import Store
url, folder, digest, size, address = sys.argv[1:]
store = Store(Path(folder), reserve_bytes=0)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    source = HttpSource(url, ticks_ns=SystemClock().ticks_ns)
    file = Wanted(digest, int(size), address, {"sha256": digest})
    download(source, store, file, lambda: False)
except StepFailed as failed:
    print(failed.reason.value)
"""


def test_disk_that_fills_up_while_writing(web: ToyFleet, store: Store, file: Wanted) -> None:
    assert resource.RLIMIT_FSIZE is not None
    url = f"{web.url}/v1/store"
    arguments = [url, str(store.folder), file.digest, str(len(DATA)), file.address]
    found = subprocess.run(
        [sys.executable, "-c", _LIMITED, *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.strip() == "disk_full"
    assert DATA.startswith(partial_of(store, file))
    download(source_of(web), store, file, never)
    assert store.artifact(file.digest).read_bytes() == DATA


@pytest.mark.parametrize("place", ["partial", "artifact"])
def test_link_in_the_store_is_not_followed(
    web: ToyFleet, store: Store, file: Wanted, tmp_path: Path, place: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path: Callable[[str], Path] = getattr(store, place)
    path(file.digest).symlink_to(victim)
    download(source_of(web), store, file, never)
    assert not store.artifact(file.digest).is_symlink()
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("digest", ["../../etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", ""])
def test_path_is_never_built_from_what_is_no_digest(
    web: ToyFleet, store: Store, digest: str
) -> None:
    fails(Reason.MALFORMED, source_of(web), store, stranger(digest), never)
    assert web.requests == []


def test_hash_is_of_the_whole_file(web: ToyFleet, store: Store, file: Wanted) -> None:
    store.partial(file.digest).write_bytes(DATA[:123_456])
    download(source_of(web), store, file, never)
    found = hashlib.sha256(store.artifact(file.digest).read_bytes()).hexdigest()
    assert found == file.digest


@pytest.mark.parametrize("hashes", [{}, {"md5": "0" * 32}, {"sha256": "0" * 64, "none": "0"}])
def test_file_of_which_no_known_hash_is_given(
    web: ToyFleet, store: Store, file: Wanted, hashes: dict[str, str]
) -> None:
    fails(Reason.WRONG_HASH, source_of(web), store, replace(file, hashes=hashes), never)
    assert not store.artifact(file.digest).exists()


def test_every_hash_must_be_right(web: ToyFleet, store: Store, file: Wanted) -> None:
    both = {**file.hashes, "sha512": hashlib.sha512(DATA).hexdigest()}
    wrong = {**both, "sha512": "0" * 128}
    fails(Reason.WRONG_HASH, source_of(web), store, replace(file, hashes=wrong), never)
    download(source_of(web), store, replace(file, hashes=both), never)
    assert store.artifact(file.digest).read_bytes() == DATA

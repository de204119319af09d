"""Answers without end, without pace or without sense cost a device little, and change nothing."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest

from device_agent.errors import StepFailed
from device_agent.shell.catalogue import FOLDER
from device_agent.shell.http_source import HttpSource
from device_agent.shell.metadata_files import DELEGATED_FILES, MetadataFiles
from device_agent.shell.metadata_refresh import MetadataRefresh
from fleet_contract import limits
from fleet_contract.errors import Reason
from fleet_contract.trust.keyset import KEYSET_PATH
from tests.attacks.siege import Siege

TOP = ["2.root.json", "timestamp.json", "snapshot", "targets", "bin"]


def name_of(siege: Siege, what: str, path: str) -> str:
    if what.endswith(".json"):
        return what
    return siege.present(siege.bin_of(path) if what == "bin" else what)[0]


@pytest.mark.parametrize("what", TOP)
@pytest.mark.parametrize("announced", [True, False])
def test_endless_metadata(siege: Siege, what: str, announced: bool) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    siege.fleet.catalogue.publish_document(KEYSET_PATH, siege.fleet.keyset(generation=2))
    sent = 0

    def endless(handler: Any) -> bool:
        nonlocal sent
        handler.send_response(200)
        if announced:
            handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        try:
            while sent < 64 * 1024 * 1024:
                handler.wfile.write(b" " * 65_536)
                sent += 65_536
        except OSError:
            pass
        return True

    siege.show(name_of(siege, what, release.manifest), endless)
    tracemalloc.start()
    failed = siege.refused(release, Reason.DOWNLOAD_FAILED)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "longer than" in failed.detail
    # What lies in the kernel's buffers was sent, too.
    assert sent < 32 * 1024 * 1024
    assert peak_bytes < 4 * limits.TARGETS_BYTES
    siege.give_up()
    siege.fetch(release)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 16_000, b'{"signed":' * 1_500, b'{"a":1}'],
)
@pytest.mark.parametrize("what", ["2.root.json", "timestamp.json"])
def test_metadata_that_is_rubbish(siege: Siege, what: str, body: bytes) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    siege.show(what, body)
    siege.refused(release, Reason.BAD_METADATA)
    siege.give_up()
    siege.fetch(release)


def refresh(siege: Siege, *, refresh_s: float, **options: float) -> None:
    clock = siege.clock
    url = f"{siege.fleet.url}/v1/trust/metadata"
    MetadataRefresh(
        MetadataFiles(siege.store.folder / FOLDER),
        HttpSource(url, ticks_ns=clock.ticks_ns, **options),  # type: ignore[arg-type]
        now_ms=clock.now_ms(),
        ticks_ns=clock.ticks_ns,
        refresh_s=refresh_s,
    ).refresh()


def test_slow_retrieval_byte_by_byte(siege: Siege) -> None:
    def drip(handler: Any) -> bool:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass
        return True

    siege.show("timestamp.json", drip)
    began_s = time.monotonic()
    with pytest.raises(StepFailed, match="too long") as caught:
        refresh(siege, refresh_s=1.0)
    assert caught.value.reason is Reason.DOWNLOAD_FAILED
    assert time.monotonic() - began_s < 60
    with pytest.raises(StepFailed, match="too slow"):
        refresh(siege, refresh_s=60.0, headers_s=0.5, least_rate=1 << 30)
    siege.give_up()
    refresh(siege, refresh_s=60.0)


def test_slow_retrieval_root_after_root(siege: Siege) -> None:
    """Each answer comes in time, but there is always one more."""

    def late(handler: Any) -> bool:
        time.sleep(0.4)
        handler.answer(404 if handler.path.endswith("root.json") else 500, b"")
        return True

    siege.show("2.root.json", late)
    siege.show("timestamp.json", late)
    began_s = time.monotonic()
    with pytest.raises(StepFailed) as caught:
        refresh(siege, refresh_s=0.5)
    assert caught.value.reason is Reason.DOWNLOAD_FAILED
    assert time.monotonic() - began_s < 60


def test_delegated_metadata_do_not_fill_the_disk(siege: Siege) -> None:
    files = MetadataFiles(siege.store.folder / FOLDER)
    for number in range(DELEGATED_FILES + 40):
        files.save(f"bin.other-{number}", b"{}")
    kept = {path.name for path in files.folder.iterdir()}
    assert len(kept) <= DELEGATED_FILES + 4
    assert {"root.json", "timestamp.json", "snapshot.json", "targets.json"} <= kept
    assert f"bin.other-{DELEGATED_FILES + 39}.json" in kept
    siege.fetch(siege.fleet.release("2.0.0", opset=14))


@pytest.mark.parametrize("role", ["../evil", "/etc/passwd", "..", ".", "a/b", "a\0b"])
def test_role_whose_name_is_a_path(siege: Siege, role: str) -> None:
    files = MetadataFiles(siege.store.folder / FOLDER)
    files.save(role, b"{}")
    assert files.load(role) == b"{}"
    outside = [path for path in siege.store.folder.parent.iterdir() if path != siege.store.folder]
    assert outside == []


def test_link_in_the_place_of_metadata(siege: Siege) -> None:
    release = siege.fleet.release("2.0.0", opset=14)
    victim = siege.store.folder.parent / "victim"
    victim.write_bytes(b"precious")
    place = siege.store.folder / FOLDER / "timestamp.json"
    place.unlink()
    place.symlink_to(victim)
    siege.fetch(release)
    assert victim.read_bytes() == b"precious"
    assert not place.is_symlink()

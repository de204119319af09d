"""A mirror that answers as slowly as it can: the download is given up, kept, and goes on later.

Metadata have their own test (tests/attacks/test_endless_data.py); here it is the files.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from device_agent.errors import StepFailed
from device_agent.shell.download import Wanted, download
from device_agent.shell.http_source import Canceled, HttpSource
from fleet_contract.errors import Reason
from tests.attacks.siege import Siege

SIZE_BYTES = 400_000


def offered(siege: Siege) -> Wanted:
    file = siege.fleet.put_file(bytes(range(250)) * (SIZE_BYTES // 250))
    path = next(path for path in siege.fleet.files if path.endswith(file.digest))
    return Wanted(file.digest, file.size_bytes, path, {"sha256": file.digest})


def drip(siege: Siege, piece_bytes: int, pause_s: float, head_s: float = 0) -> Any:
    """An answer in small pieces; it ends when the device hangs up."""

    def misbehave(handler: Any) -> bool:
        time.sleep(head_s)
        handler.send_response(200)
        handler.send_header("Content-Length", str(SIZE_BYTES))
        handler.end_headers()
        try:
            for _ in range(2_000):
                handler.wfile.write(bytes(piece_bytes))
                handler.wfile.flush()
                time.sleep(pause_s)
        except OSError:
            pass
        return True

    return misbehave


def source(siege: Siege, **options: Any) -> HttpSource:
    return HttpSource(f"{siege.fleet.url}/v1/store", ticks_ns=siege.clock.ticks_ns, **options)


def never() -> bool:
    return False


@pytest.mark.parametrize(
    ("piece_bytes", "pause_s", "options", "said"),
    [
        (1, 0.02, {"headers_s": 0.3, "least_rate": 1 << 20}, "too slow"),
        (0, 0.02, {"stall_s": 0.3}, "stalled"),
    ],
    ids=["byte by byte", "nothing"],
)
def test_file_that_does_not_come(
    siege: Siege, piece_bytes: int, pause_s: float, options: dict[str, Any], said: str
) -> None:
    file = offered(siege)
    siege.fleet.misbehave[file.address] = drip(siege, piece_bytes, pause_s)
    with pytest.raises(StepFailed, match=said) as caught:
        download(source(siege, **options), siege.store, file, never)
    assert caught.value.reason is Reason.DOWNLOAD_FAILED
    assert not siege.store.artifact(file.digest).exists()
    siege.give_up()
    siege.store.partial(file.digest).unlink()  # what dripped in was not the file
    download(source(siege), siege.store, file, never)
    assert siege.store.artifact(file.digest).exists()


def test_head_that_does_not_come(siege: Siege) -> None:
    file = offered(siege)
    siege.fleet.misbehave[file.address] = drip(siege, 1, 0.02, head_s=1.5)
    with pytest.raises(StepFailed) as caught:
        download(source(siege, stall_s=0.3), siege.store, file, never)
    assert caught.value.reason is Reason.DOWNLOAD_FAILED
    siege.give_up()
    download(source(siege), siege.store, file, never)


def test_false_beginning_is_thrown_away(siege: Siege) -> None:
    """The mirror drips other bytes, then behaves: the device starts over instead of being stuck."""
    file = offered(siege)
    siege.fleet.misbehave[file.address] = drip(siege, 50_000, 0.5)
    partial = siege.store.partial(file.digest)
    for _ in range(20):  # until the first piece came before the time was over
        with pytest.raises(StepFailed):
            download(source(siege, headers_s=0.2, least_rate=1 << 20), siege.store, file, never)
        if partial.exists() and partial.stat().st_size:
            break
    siege.give_up()
    assert 0 < partial.stat().st_size < SIZE_BYTES
    with pytest.raises(StepFailed) as caught:
        download(source(siege), siege.store, file, never)
    assert caught.value.reason is Reason.WRONG_HASH
    download(source(siege), siege.store, file, never)
    assert siege.store.artifact(file.digest).exists()


def test_newer_order_does_not_wait_for_a_slow_file(siege: Siege) -> None:
    """A rollback needs no download, and a download that nobody wants any more ends at once."""
    file = offered(siege)
    siege.fleet.misbehave[file.address] = drip(siege, 1, 0.02)
    unwanted = threading.Event()
    threading.Timer(0.3, unwanted.set).start()
    with pytest.raises(Canceled):
        download(source(siege), siege.store, file, unwanted.is_set)
    assert not siege.store.artifact(file.digest).exists()

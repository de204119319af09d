"""Guards what the object store is trusted with, over real HTTP against moto, which emulates S3.

An emulation: it shows that requests, ranges and keys are right. It does not check signatures or
their end, and says nothing of a real provider's limits.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from device_agent.inference.capabilities import capabilities
from device_agent.shell.clock import SystemClock
from device_agent.shell.download import Wanted, download
from device_agent.shell.following import Origins
from device_agent.shell.http_source import HttpSource
from device_agent.shell.identity import enrol
from device_agent.shell.store import Store as DeviceStore
from device_agent.shell.tls import Tls
from fleet_contract.deltas.form import patch_path
from fleet_contract.manifest import FileRef, artifact_path
from fleet_server.deltas import service as deltas
from fleet_server.deltas.plan import Delta
from fleet_server.deltas.service import Outcome
from fleet_server.deltas.states import DeltaState
from fleet_server.errors import Unavailable
from fleet_server.object_store import open_object_store
from fleet_server.releases.mirroring import Mirroring
from fleet_server.releases.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.moto]

DEADLINE_S = 60.0
FOLLOWS = {"X-Edgefleet-Follow": "1"}


class Emulation:
    """A private moto server with one bucket."""

    def __init__(self, venv: Path, port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [venv / "bin" / "moto_server", "-H", "127.0.0.1", "-p", str(port)],
                stdout=file,
                stderr=file,
                env={"PATH": "/usr/bin:/bin", "HOME": str(log.parent)},
            )
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                httpx.put(f"{self.url}/models").raise_for_status()
                return
            except httpx.HTTPError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    pytest.fail(f"moto did not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.1)

    def listing(self) -> str:
        return httpx.get(f"{self.url}/models?list-type=2").text

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture
def emulation(
    require_moto: Path,
    tmp_path: Path,
    pick_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Emulation]:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    started = Emulation(require_moto, pick_port(), tmp_path / "moto.log")
    for name, value in {
        "AWS_ENDPOINT_URL": started.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "very-secret",
    }.items():
        monkeypatch.setenv(name, value)
    yield started
    started.stop()


def test_devices_are_led_to_the_bucket_and_others_are_not(
    emulation: Emulation, start_server: Callable[..., Any], tmp_path: Path
) -> None:
    before = Store(tmp_path / "data" / "store").put_artifact("detector", [b"of before"])
    server = start_server(object_store="s3://models/fleet")
    store = server.app.state.staging.store
    data = os.urandom(20_000_000)  # more than two parts
    file = store.put_artifact("detector", [data])
    path = artifact_path("detector", file.digest)
    assert f"fleet/store/{path}" in emulation.listing()

    whole = server.client.get(f"/v1/store/{path}")
    assert (whole.status_code, hashlib.sha256(whole.content).hexdigest()) == (200, file.digest)
    led = server.client.get(f"/v1/store/{path}", headers=FOLLOWS)
    assert (led.status_code, led.headers["cache-control"]) == (307, "no-store")
    where = led.headers["location"]
    assert where.startswith(f"{emulation.url}/models/fleet/store/{path}?")
    assert "X-Amz-Expires=300&" in where and "very-secret" not in where
    rest = httpx.get(where, headers={"Range": "bytes=19999000-"})
    assert (rest.status_code, rest.content) == (206, data[19_999_000:])
    assert rest.headers["content-range"] == f"bytes 19999000-19999999/{len(data)}"
    assert server.client.head(f"/v1/store/{path}", headers=FOLLOWS).status_code == 200
    # A stranger is not told.
    assert server.anonymous.get(f"/v1/store/{path}", headers=FOLLOWS).status_code == 401

    manifest = store.put_manifest("detector", b"{}")
    answer = server.client.get(
        f"/v1/store/manifests/detector/{manifest.digest}.json", headers=FOLLOWS
    )
    assert (answer.status_code, answer.content) == (200, b"{}")

    mirroring = Mirroring([store])
    mirroring.look(listing=True)
    assert before.digest in emulation.listing()
    store.remove(path)
    mirroring.look(listing=False)
    assert file.digest not in emulation.listing() and before.digest in emulation.listing()
    assert httpx.get(where).status_code == 404
    assert server.client.get(f"/v1/store/{path}", headers=FOLLOWS).status_code == 404


def test_bucket_that_is_away_refuses_new_files_and_serves_old_ones(
    emulation: Emulation, start_server: Callable[..., Any]
) -> None:
    server = start_server(object_store="s3://models/fleet")
    store = server.app.state.staging.store
    file = store.put_artifact("detector", [b"weights"])
    emulation.stop()
    with pytest.raises(Unavailable) as caught:
        store.put_artifact("detector", [b"others"])
    assert caught.value.code == "object_store_failed"
    assert "secret" not in caught.value.detail
    assert [entry.path for entry in store.files()] == [artifact_path("detector", file.digest)]
    answer = server.client.get(f"/v1/store/{artifact_path('detector', file.digest)}")
    assert answer.content == b"weights"


def test_enrolled_device_fetches_from_the_bucket_and_without_it(
    emulation: Emulation, start_server: Callable[..., Any], tmp_path: Path
) -> None:
    server = start_server(object_store="s3://models/fleet")
    server.wait_ready()
    made = server.client.post("/v1/devices/tokens", json={"device": "door-17"}).json()
    folder = DeviceStore(tmp_path / "device", reserve_bytes=0)
    clock = SystemClock()
    identity = enrol(folder, made["token"], "door-17", capabilities(), clock)
    tls = Tls(folder.folder, "door-17", now_ms=clock.now_ms, time_floor_ms=lambda: 0)
    source = HttpSource(
        identity.artifacts,
        ticks_ns=clock.ticks_ns,
        tls=tls.context,
        leads=Origins([emulation.url], ticks_ns=clock.ticks_ns).find,
    )
    store = server.app.state.staging.store

    def fetch(data: bytes, before: Callable[[str], None] = lambda _: None) -> None:
        file = store.put_artifact("detector", [data])
        address = artifact_path("detector", file.digest)
        wanted = Wanted(file.digest, file.size_bytes, address, {"sha256": file.digest})
        # What came before goes on there by range.
        folder.partial(file.digest).write_bytes(data[:1000])
        before(f"store/{address}")
        download(source, folder, wanted, lambda: False)
        assert folder.artifact(file.digest).read_bytes() == data

    fetch(os.urandom(300_000))
    assert re.search(r"GET /models/fleet/store/artifacts/.* 206 ", emulation.log.read_text())

    # An object that is gone, and one with other bytes.
    objects = open_object_store("s3://models/fleet")
    assert objects is not None
    wrong = tmp_path / "wrong"
    wrong.write_bytes(bytes(300_000))
    for harm in (objects.remove, lambda key: objects.put(key, wrong)):
        fetch(os.urandom(300_000), harm)


def test_patch_is_in_the_bucket_until_it_is_dropped(
    emulation: Emulation, start_server: Callable[..., Any]
) -> None:
    server = start_server(object_store="s3://models/fleet", delta_interval_ms=0)
    maker = server.app.state.deltas
    file = maker.patches.put_artifact("detector", [b"patch"])
    old, new = FileRef("a" * 64, 100), FileRef("b" * 64, 100)
    with server.app.state.database.transaction() as session:
        outcome = Outcome(DeltaState.MADE, 1, file.digest, file.size_bytes)
        deltas.record(session, Delta("detector", "1.0.0", "2.0.0", old, new), outcome, now_ms=1)
    path = f"/v1/store/{patch_path(old.digest, new.digest)}"
    assert server.client.get(path).content == b"patch"
    led = server.client.get(path, headers=FOLLOWS)
    assert led.status_code == 307
    assert httpx.get(led.headers["location"]).content == b"patch"
    # No release needs it.
    maker.tick()
    Mirroring([maker.patches]).look(listing=False)
    assert server.client.get(path, headers=FOLLOWS).status_code == 404
    assert file.digest not in emulation.listing()

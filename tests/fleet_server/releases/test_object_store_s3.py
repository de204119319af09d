"""Guards what the object store is trusted with, over real HTTP against S3.

By default that is moto, an emulation: it shows that requests, ranges and keys are right. It does
not check signatures or their end. Whoever has a real one rehearses with it instead:
``S3_TEST_BUCKET=s3://BUCKET`` and the variables by which the server would reach it. The
tests then write below a key of their own.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx
import pytest

from device_agent.inference.capabilities import capabilities
from device_agent.shell.clock import SystemClock
from device_agent.shell.download import Wanted, download
from device_agent.shell.following import Origins, Route
from device_agent.shell.http_source import Answer, HttpSource
from device_agent.shell.identity import enrol
from device_agent.shell.store import Store as DeviceStore
from device_agent.shell.tls import Tls
from fleet_contract.deltas.form import patch_path
from fleet_contract.manifest import FileRef, artifact_path
from fleet_server import object_store
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
    """A private moto server with one bucket, at a port that it takes itself."""

    def __init__(self, venv: Path, log: Path) -> None:
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [venv / "bin" / "moto_server", "-H", "127.0.0.1", "-p", "0"],
                stdout=file,
                stderr=file,
                env={"PATH": "/usr/bin:/bin", "HOME": str(log.parent)},
            )
        try:
            self.url = self._listening(log)
            httpx.put(f"{self.url}/models", timeout=DEADLINE_S).raise_for_status()
        except BaseException:
            self.stop()
            raise

    def _listening(self, log: Path) -> str:
        """Wait until the log says where it listens."""
        deadline = time.monotonic() + DEADLINE_S
        while not (said := re.search(r"Running on (http://127\.0\.0\.1:\d+)", log.read_text())):
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"moto did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.05)
        return said[1]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE_S)


class Bucket:
    """Where a test's objects are: at the URL that a server is given."""

    def __init__(self, url: str) -> None:
        self.url = url
        opened = open_object_store(url)
        assert opened is not None
        self.objects = opened

    def lent(self) -> SplitResult:
        """The parts of a URL that is lent; its origin is where devices are led."""
        return urlsplit(self.objects.lend("any") or "")

    def origin(self) -> str:
        return f"{self.lent().scheme}://{self.lent().netloc}"

    def holds(self, digest: str) -> bool:
        rooms = (self.objects.sizes(f"{room}/artifacts") for room in ("store", "deltas"))
        return any(key.endswith(digest) for sizes in rooms for key in sizes)


@pytest.fixture
def emulation(
    require_moto: Path, tmp_path: Path, use_s3: Callable[[str], None]
) -> Iterator[Emulation]:
    started = Emulation(require_moto, tmp_path / "moto.log")
    use_s3(started.url)
    yield started
    started.stop()


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    given = os.environ.get("S3_TEST_BUCKET")
    if given is None:
        request.getfixturevalue("emulation")
    made = Bucket(f"{given or 's3://models'}/{uuid.uuid4()}")
    yield made
    if given is not None:
        for key in made.objects.sizes(""):
            made.objects.remove(key)


def test_devices_are_led_to_the_bucket_and_others_are_not(
    bucket: Bucket, start_server: Callable[..., Any], tmp_path: Path
) -> None:
    before = Store(tmp_path / "data" / "store").put_artifact("detector", [b"of before"])
    server = start_server(object_store=bucket.url)
    store = server.app.state.staging.store
    data = os.urandom(20_000_000)  # more than two parts
    file = store.put_artifact("detector", [data])
    path = artifact_path("detector", file.digest)
    assert bucket.holds(file.digest)

    whole = server.client.get(f"/v1/store/{path}")
    assert (whole.status_code, hashlib.sha256(whole.content).hexdigest()) == (200, file.digest)
    led = server.client.get(f"/v1/store/{path}", headers=FOLLOWS)
    assert (led.status_code, led.headers["cache-control"]) == (307, "no-store")
    where = led.headers["location"]
    assert where.startswith(f"{bucket.origin()}/") and f"/store/{path}?" in where
    assert "X-Amz-Expires=300&" in where
    assert os.environ.get("AWS_SECRET_ACCESS_KEY", "very-secret") not in where
    rest = httpx.get(where, headers={"Range": "bytes=19999000-"}, timeout=DEADLINE_S)
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
    assert bucket.holds(before.digest)
    store.remove(path)
    mirroring.look(listing=False)
    assert bucket.holds(before.digest) and not bucket.holds(file.digest)
    assert httpx.get(where, timeout=DEADLINE_S).status_code == 404
    assert server.client.get(f"/v1/store/{path}", headers=FOLLOWS).status_code == 404


def test_bucket_that_is_away_refuses_new_files_and_serves_old_ones(
    emulation: Emulation, start_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "RETRIES", 1)
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
    bucket: Bucket,
    start_server: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = start_server(object_store=bucket.url)
    server.wait_ready()
    made = server.client.post("/v1/devices/tokens", json={"device": "door-17"}).json()
    folder = DeviceStore(tmp_path / "device", reserve_bytes=0)
    clock = SystemClock()
    identity = enrol(folder, made["token"], "door-17", capabilities(), clock)
    tls = Tls(folder.folder, "door-17", now_ms=clock.now_ms, time_floor_ms=lambda: 0)
    ask = Route.ask
    answers: list[tuple[bool, int]] = []

    @contextmanager
    def watched(route: Route, *arguments: Any, **options: Any) -> Iterator[Answer]:
        with ask(route, *arguments, **options) as answer:
            answers.append((route.led, answer.status))
            yield answer

    monkeypatch.setattr(Route, "ask", watched)
    source = HttpSource(
        identity.artifacts,
        ticks_ns=clock.ticks_ns,
        tls=tls.context,
        leads=Origins([bucket.origin()], ticks_ns=clock.ticks_ns).find,
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
    assert answers == [(True, 206)]

    # An object that is gone, and one with other bytes.
    wrong = tmp_path / "wrong"
    wrong.write_bytes(bytes(300_000))
    objects = bucket.objects
    for harm in (objects.remove, lambda key: objects.put(key, wrong)):
        fetch(os.urandom(300_000), harm)


def test_patch_is_in_the_bucket_until_it_is_dropped(
    bucket: Bucket, start_server: Callable[..., Any]
) -> None:
    server = start_server(object_store=bucket.url, delta_interval_ms=0)
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
    assert httpx.get(led.headers["location"], timeout=DEADLINE_S).content == b"patch"
    # No release needs it.
    maker.tick()
    Mirroring([maker.patches]).look(listing=False)
    assert server.client.get(path, headers=FOLLOWS).status_code == 404
    assert not bucket.holds(file.digest)

"""What tests of the server share: a clock that obeys, a database, a keyring, a running server."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import structlog
import uvicorn
from fastapi import FastAPI

from fleet_contract.manifest import Capabilities
from fleet_server import logs, serving
from fleet_server.access import oidc
from fleet_server.app import create_app
from fleet_server.broker import listener, mosquitto, takeover
from fleet_server.broker.rules import SERVER_IDENTITIES
from fleet_server.clock import Clock
from fleet_server.database import Database
from fleet_server.settings import Settings
from fleet_server.trust.authority.authority import Authority, open_authority
from fleet_server.trust.catalogue.opening import open_catalogue
from fleet_server.trust.catalogue.repository import Catalogue
from fleet_server.trust.keyring import Keyring, open_keyring

FLEET = "home"
START_MS = 1_795_000_000_000
DEADLINE_S = 60.0


@dataclass
class ObedientClock:
    """Wall time stands still unless a test moves it; randomness is a seeded stream."""

    wall_ms: int = START_MS
    drawn: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def now_ms(self) -> int:
        return self.wall_ms

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def random_bytes(self, count: int) -> bytes:
        with self.lock:
            self.drawn += 1
            seed = self.drawn.to_bytes(8, "big")
        return hashlib.shake_256(seed).digest(count)


@dataclass
class RunningServer:
    """A whole server on a thread of its own, and a client that speaks as its admin."""

    app: FastAPI
    settings: Settings
    client: httpx.Client
    anonymous: httpx.Client
    stop: Callable[[], None]

    def wait_ready(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while self.anonymous.get("/ready").status_code != 200:
            assert time.monotonic() < deadline, self.anonymous.get("/ready").text
            time.sleep(0.01)


@pytest.fixture
def clock() -> ObedientClock:
    return ObedientClock()


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that was migrated once; each test gets a copy."""
    path = tmp_path_factory.mktemp("migrated") / "fleet.sqlite"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture
def database(migrated_file: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copy(migrated_file, tmp_path / "fleet.sqlite")
    database = Database(f"sqlite:///{tmp_path / 'fleet.sqlite'}")
    yield database
    database.close()


@pytest.fixture
def keyring(tmp_path: Path, clock: ObedientClock) -> Keyring:
    return open_keyring(tmp_path / "keys", fleet=FLEET, random_bytes=clock.random_bytes)


@pytest.fixture
def authority(tmp_path: Path, clock: ObedientClock) -> Authority:
    return open_authority(
        tmp_path / "pki",
        fleet=FLEET,
        hosts=["127.0.0.1", "localhost"],
        identities=SERVER_IDENTITIES,
        may_make=True,
        random_bytes=clock.random_bytes,
        now_ms=clock.now_ms,
    )


@pytest.fixture
def catalogue(tmp_path: Path, clock: ObedientClock) -> Catalogue:
    return open_catalogue(
        tmp_path / "trust",
        may_make=True,
        random_bytes=clock.random_bytes,
        now_ms=clock.now_ms,
    )


@pytest.fixture
def capabilities() -> Capabilities:
    return Capabilities(
        runtimes={"onnxruntime": "1.31.1"},
        machine="x86_64",
        max_opset=26,
        max_ir_version=13,
        memory_bytes=4_000_000_000,
    )


@pytest.fixture
def start_server(
    tmp_path: Path, pick_port: Callable[[], int]
) -> Iterator[Callable[..., RunningServer]]:
    """Start servers, as many as the test needs; all are stopped at its end."""
    running: list[RunningServer] = []

    def start(clock: Clock | None = None, **settings: object) -> RunningServer:
        given: dict[str, object] = {
            "data_dir": tmp_path / "data",
            "port": pick_port(),
            "device_port": pick_port(),
            "broker": "embedded",
        }
        server = _start(Settings(**(given | settings)), clock)  # type: ignore[arg-type]
        running.append(server)
        return server

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def use_s3(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lead the library of the object store to an endpoint, whatever the machine says of others."""

    def use(endpoint: str) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "very-secret",
        }.items():
            monkeypatch.setenv(name, value)

    return use


@pytest.fixture
def server(start_server: Callable[..., RunningServer]) -> RunningServer:
    return start_server()


def _start(settings: Settings, clock: Clock | None) -> RunningServer:
    app = create_app(settings, clock)
    # Connections wait in the backlog until the server takes them.
    listeners = [
        serving.listen(settings.host, port, "port")
        for port in (settings.port, settings.device_port)
    ]
    both: list[uvicorn.Server] = []
    started = threading.Event()
    failed: list[BaseException] = []

    async def serve() -> None:
        with listeners[0], listeners[1]:
            async with app.router.lifespan_context(app):
                both.extend(serving.servers(app))
                started.set()
                await asyncio.gather(
                    *(
                        one.serve(sockets=[listener])
                        for one, listener in zip(both, listeners, strict=True)
                    )
                )

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="server", daemon=True)
    thread.start()
    assert started.wait(DEADLINE_S), "the server did not start"
    if failed:
        raise failed[0]
    token = (settings.data_dir / "admin-token").read_text().strip()
    client = httpx.Client(
        base_url=settings.url, headers={"Authorization": f"Bearer {token}"}, timeout=DEADLINE_S
    )
    anonymous = httpx.Client(base_url=settings.url, timeout=DEADLINE_S)

    def stop() -> None:
        if not thread.is_alive():
            return
        client.close()
        anonymous.close()
        for one in both:
            one.should_exit = True
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "the server did not stop"

    return RunningServer(app, settings, client, anonymous, stop)


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("EDGEFLEET_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only bounds a hang must not be met by a machine that stands still for a while."""
    for name in ("_START_TIMEOUT_S", "_STOP_TIMEOUT_S", "_RELOAD_S"):
        monkeypatch.setattr(mosquitto, name, DEADLINE_S)
    monkeypatch.setattr(takeover, "CONNECT_S", DEADLINE_S)
    monkeypatch.setattr(listener, "_CLOSE_GRACE_S", DEADLINE_S)
    monkeypatch.setattr(oidc, "TIMEOUT_S", DEADLINE_S)


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """The program's log as an operator would find it, from the most talkative level on."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = list(root.handlers), root.level
    for handler in handlers:
        root.removeHandler(handler)
    logs.configure("debug", str(tmp_path / "log"))
    yield tmp_path / "log"
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    structlog.configure(**before)

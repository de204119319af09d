"""Decides what every test may rely on: free ports, and private services or a loud skip.

A test that needs Mosquitto, PostgreSQL, MLflow or moto gets an instance of its own or is skipped
with the reason; under CI (environment variable CI) it fails instead, so that nothing is left out
unnoticed.
What belongs to one room only is in that room's own conftest.py.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import structlog
from hypothesis import HealthCheck, settings

POSTGRES_START_S = 120.0
# No network, and no care for a power cut: the data lives as long as the test run.
POSTGRES_SETTINGS = ("-c", "listen_addresses=", "-c", "fsync=off", "-c", "full_page_writes=off")
SERVICE_PATHS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")

# Examples are few enough for a run in seconds, and the same ones under CI: a failure there has to
# be repeatable. HYPOTHESIS_PROFILE=thorough searches longer.
settings.register_profile(
    "house",
    deadline=None,
    max_examples=60,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", parent=settings.get_profile("house"), max_examples=3_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))

# Unconfigured, structlog prints to standard output, where a server on a thread of the test would
# write between the lines of a command under test. So a test's log goes where pytest gathers it.
structlog.configure(
    processors=[
        structlog.stdlib.add_log_level,
        structlog.processors.format_exc_info,
        structlog.processors.KeyValueRenderer(key_order=["event"]),
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=False,
)


def _missing(what: str) -> NoReturn:
    """Skip the test because a service is not installed, or fail it under CI."""
    reason = f"NOT INSTALLED: {what} (make services installs it)"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@contextmanager
def _ports() -> Iterator[Callable[[], int]]:
    """Each call gives another TCP port on loopback, which is one's own to the end.

    A socket that is bound and does not listen keeps others from being given the port, also between
    two servers of a test. Whoever binds it with SO_REUSEADDR, as every server does, may listen
    there; until then connections are refused. Other systems than Linux let nobody bind beside it.
    """
    given: set[int] = set()
    with ExitStack() as kept:

        def pick() -> int:
            while True:
                holder = kept.enter_context(socket.socket())
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                holder.bind(("127.0.0.1", 0))
                port: int = holder.getsockname()[1]
                if sys.platform != "linux":
                    holder.close()
                if port not in given:
                    given.add(port)
                    return port

        yield pick


@pytest.fixture
def pick_port() -> Iterator[Callable[[], int]]:
    """Gives ports that are the test's own."""
    with _ports() as pick:
        yield pick


@pytest.fixture(scope="module")
def pick_lasting_port() -> Iterator[Callable[[], int]]:
    """Gives ports for what all tests of a module use."""
    with _ports() as pick:
        yield pick


@pytest.fixture
def free_port(pick_port: Callable[[], int]) -> int:
    """One such port."""
    return pick_port()


@pytest.fixture(scope="session")
def require_mosquitto() -> Path:
    """The path of the mosquitto binary; without it the test is skipped (CI: fails)."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *SERVICE_PATHS))
    found = shutil.which("mosquitto", path=path)
    if found is None:
        _missing("mosquitto")
    return Path(found)


@pytest.fixture(scope="session")
def require_mlflow() -> Path:
    """The folder of an environment that has MLflow; without it the test is skipped (CI: fails)."""
    here = Path(__file__).resolve().parent.parent / ".venv-mlflow"
    folder = Path(os.environ.get("MLFLOW_VENV", here))
    if not (folder / "bin" / "mlflow").is_file():
        _missing("mlflow")
    return folder


@pytest.fixture(scope="session")
def require_moto() -> Path:
    """An environment with moto's emulation of S3; without it the test is skipped (CI: fails)."""
    here = Path(__file__).resolve().parent.parent / ".venv-moto"
    folder = Path(os.environ.get("MOTO_VENV", here))
    if not (folder / "bin" / "moto_server").is_file():
        _missing("moto")
    return folder


@dataclass(frozen=True)
class PrivatePostgres:
    """A PostgreSQL server that listens on nothing but a Unix socket in its own folder."""

    folder: Path

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of one of its databases."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"

    def dsn(self, database: str) -> str:
        """The same in libpq's form."""
        return f"host={self.folder} user=postgres dbname={database}"


def _postgres_binaries() -> Path:
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    on_path = shutil.which("initdb")
    if on_path is not None:
        # Debian has wrappers nearby; the server's own folder is where the link ends.
        candidates.append(Path(on_path).resolve())
    for initdb in candidates:
        if (initdb.parent / "postgres").exists():
            return initdb.parent
    _missing("postgresql")


def _unprivileged() -> pwd.struct_passwd | None:
    """The account that PostgreSQL runs as when the tests run as root, which it refuses."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.fail("PostgreSQL refuses to run as root, and there is no account to run it as")


@pytest.fixture(scope="session")
def private_postgres() -> Iterator[PrivatePostgres]:
    """A PostgreSQL of this test process, gone with it; skipped (CI: fails) where none is."""
    psycopg = pytest.importorskip("psycopg")
    binaries = _postgres_binaries()
    account = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="edgefleet-postgres-"))
    user = account.pw_uid if account else None
    group = account.pw_gid if account else None
    if account:
        os.chown(folder, account.pw_uid, account.pw_gid)
    options: dict[str, Any] = {"user": user, "group": group, "cwd": folder}
    if account:
        options["extra_groups"] = []
    data = folder / "data"
    postgres = PrivatePostgres(folder)
    try:
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N"],
            check=True,
            capture_output=True,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"},
            **options,
        )
        log_path = folder / "log"
        with log_path.open("wb") as log:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", data, "-k", folder, *POSTGRES_SETTINGS],
                stdout=log,
                stderr=log,
                **options,
            )
        try:
            deadline = time.monotonic() + POSTGRES_START_S
            while True:
                try:
                    psycopg.connect(postgres.dsn("postgres")).close()
                    break
                except psycopg.OperationalError:
                    if server.poll() is not None or time.monotonic() > deadline:
                        pytest.fail(f"PostgreSQL did not start:\n{log_path.read_text()}")
                    time.sleep(0.05)
            yield postgres
        finally:
            # Fast shutdown: open connections are cut instead of waited for.
            server.send_signal(signal.SIGINT)
            server.wait(timeout=POSTGRES_START_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(private_postgres: PrivatePostgres) -> Iterator[str]:
    """The SQLAlchemy URL of an empty database that belongs to this test alone."""
    import psycopg

    with psycopg.connect(private_postgres.dsn("postgres"), autocommit=True) as connection:
        name = f"test_{time.monotonic_ns()}"
        connection.execute(f'CREATE DATABASE "{name}"')
        yield private_postgres.url(name)
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

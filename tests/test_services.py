"""Guards the fixtures that start private services: a test must never share or miss one silently."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text


def test_free_port_can_be_bound_again_and_again(free_port: int) -> None:
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", free_port))
        with socket.create_server(("127.0.0.1", free_port)) as listener:
            socket.create_connection(listener.getsockname()).close()


@pytest.mark.skipif(sys.platform != "linux", reason="others cannot bind beside a bound socket")
def test_free_port_is_given_to_nobody_else(free_port: int) -> None:
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", free_port))


def test_picked_ports_are_never_given_twice(pick_port: Callable[[], int]) -> None:
    assert len({pick_port() for _ in range(50)}) == 50


@pytest.mark.broker
def test_required_mosquitto_starts(require_mosquitto: Path) -> None:
    answer = subprocess.run([require_mosquitto, "-h"], capture_output=True, text=True, check=False)
    assert "mosquitto version" in answer.stdout


@pytest.mark.slow
@pytest.mark.postgres
def test_private_postgres_database_is_empty(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        tables = connection.execute(
            text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        ).scalar_one()
        connection.execute(text("CREATE TABLE left_behind (id integer)"))
        address = connection.execute(text("SHOW listen_addresses")).scalar_one()
    engine.dispose()
    assert tables == 0
    assert address == "", "a private PostgreSQL must not be reachable over the network"


@pytest.mark.slow
@pytest.mark.postgres
def test_private_postgres_databases_are_kept_apart(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        left_behind = connection.execute(text("SELECT to_regclass('left_behind')")).scalar_one()
    engine.dispose()
    assert left_behind is None


def test_missing_service_fails_under_ci(
    pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(Path(__file__).with_name("conftest.py"))
    plugins = pytestconfig.pluginmanager.get_plugins()
    conftest = next(plugin for plugin in plugins if getattr(plugin, "__file__", None) == here)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="NOT INSTALLED: a broker"):
        conftest._missing("a broker")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="NOT INSTALLED: a broker"):
        conftest._missing("a broker")

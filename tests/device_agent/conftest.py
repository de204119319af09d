"""What tests of the agent rely on: time enough on a busy machine, and a port that stays closed."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from device_agent.shell import doctor, http_source, mqtt

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give connections and their handshakes a minute: here these bounds only end a hang."""
    monkeypatch.setattr(doctor, "_CONNECT_S", PATIENCE_S)
    monkeypatch.setattr(http_source, "CONNECT_S", PATIENCE_S)
    monkeypatch.setattr(mqtt, "CONNECT_S", PATIENCE_S)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A TCP port on loopback where nobody listens; it is held, so that nobody else will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        yield port

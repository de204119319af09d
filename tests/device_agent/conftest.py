"""What tests of the agent rely on: time enough on a busy machine."""

from __future__ import annotations

import pytest

from device_agent.shell import doctor, http_source, mqtt

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give connections and their handshakes a minute: here these bounds only end a hang."""
    monkeypatch.setattr(doctor, "_CONNECT_S", PATIENCE_S)
    monkeypatch.setattr(http_source, "CONNECT_S", PATIENCE_S)
    monkeypatch.setattr(mqtt, "CONNECT_S", PATIENCE_S)

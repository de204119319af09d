"""A device of a live fleet whose server does not answer in time, and one that is not wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from device_agent.errors import EnrolmentFailed
from device_agent.shell.http_source import HttpFailure
from device_agent.shell.workshop import Workshop
from simulator.live import process
from simulator.live.messages import DeviceTask


class Server:
    """Gives these outcomes in turn."""

    def __init__(self, *causes: Exception | None) -> None:
        self.asked = 0
        self._causes = causes

    def enrol(self, *_: Any) -> None:
        cause = self._causes[self.asked]
        self.asked += 1
        if cause is not None:
            raise EnrolmentFailed("in vain") from cause


def join(server: Server, folder: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "enrol", server.enrol)
    process._enrol(DeviceTask("device-1", str(folder), "a token"), workshop)


@pytest.fixture(scope="module")
def workshop() -> Any:
    shared = Workshop()
    yield shared
    shared.close()


def test_busy_server_ends_the_fleet(
    tmp_path: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(HttpFailure("the handshake took too long"), None)
    join(server, tmp_path, workshop, monkeypatch)
    assert server.asked == 2


def test_server_that_is_not_there_is_asked_for_ever(
    tmp_path: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(*[HttpFailure("nobody is there")] * 9)
    with pytest.raises(EnrolmentFailed):
        join(server, tmp_path, workshop, monkeypatch)
    assert server.asked == 3


def test_refused_token_is_tried_again(
    tmp_path: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(ValueError("refused"), None)
    with pytest.raises(EnrolmentFailed):
        join(server, tmp_path, workshop, monkeypatch)
    assert server.asked == 1

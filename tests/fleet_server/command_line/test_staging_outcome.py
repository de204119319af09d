"""Guards from a wait that calls a release lost because its server was restarted meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from fleet_server.command_line import staging_outcome
from fleet_server.command_line.connection import Unreachable
from fleet_server.command_line.output import CommandError
from fleet_server.command_line.staging_outcome import Outcome, follow, outcome

STAGING = {"model": "m", "version": "1.0.0", "state": "staging", "steps_to_do": ["data"]}
STAGED = {**STAGING, "state": "staged", "steps_to_do": []}


class _Server:
    """Gives each of these answers in turn, the last one for ever."""

    def __init__(self, *answers: Any) -> None:
        self._answers: Iterator[Any] = iter(answers)
        self._last: Any = None

    def get(self, _path: str) -> Any:
        self._last = next(self._answers, self._last)
        if isinstance(self._last, BaseException):
            raise self._last
        return self._last


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging_outcome, "POLL_S", 0.001)


def _follow(server: Any, **limits: float) -> Any:
    return follow(server, STAGING, Console(quiet=True), 600, **limits)


def test_server_that_is_restarted_while_it_stages() -> None:
    away = Unreachable("The server cannot be reached.")
    busy = CommandError("Busy.", problem={"status": 503})
    server = _Server(STAGING, away, busy, away, STAGING, STAGED)
    assert outcome(_follow(server)) is Outcome.STAGED


def test_server_that_does_not_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    found = _follow(_Server(Unreachable("The server cannot be reached.")), silent_s=0)
    # It had arrived: a script must not take this for a push that failed.
    assert outcome(found) is Outcome.TIMED_OUT
    assert "edgefleet model show m 1.0.0" in capsys.readouterr().err


def test_server_that_says_no_is_believed_at_once() -> None:
    gone = CommandError("There is no such release.", problem={"status": 404})
    with pytest.raises(CommandError, match="no such release"):
        _follow(_Server(gone, STAGED))


def test_wait_that_is_broken_off_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        _follow(_Server(KeyboardInterrupt()))
    assert "edgefleet model show m 1.0.0" in capsys.readouterr().err

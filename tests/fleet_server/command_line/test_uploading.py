"""Guards from a push that arrived and is called lost, or that is sent twice."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fleet_server.command_line.connection import NoConnection, Unreachable
from fleet_server.command_line.output import CommandError
from fleet_server.command_line.uploading import WAITS_S, send_release

LOST = Unreachable("The server did not answer in time.")
TAKEN = CommandError("Release 1.0.0 of m exists.", problem={"status": 409})
NONE = CommandError("There is no such release.", problem={"status": 404})


class _Server:
    """Answers the form, and questions for the release, with these in turn."""

    def __init__(self, posts: list[Any], gets: list[Any]) -> None:
        self._posts, self._gets = iter(posts), iter(gets)
        self.forms: list[bytes] = []

    def call(self, _method: str, _path: str, *, files: Any, **_options: Any) -> Any:
        self.forms.append(files["model"][1].read())
        return _answer(next(self._posts))

    def get(self, _path: str) -> Any:
        return _answer(next(self._gets))


def _answer(item: Any) -> Any:
    if isinstance(item, BaseException):
        raise item
    return item


def _release(content: bytes, state: str = "staging") -> dict[str, str]:
    return {"source_digest": hashlib.sha256(content).hexdigest(), "state": state}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"weights")
    return path


def _push(server: Any, model: Path) -> Any:
    fields, console = {"version": "1.0.0"}, Console(quiet=True)
    return send_release(server, "m", fields, {"model": model}, console, sleep=lambda _: None)


def test_answer_that_is_lost_after_the_release_arrived(model: Path) -> None:
    server = _Server([LOST], [_release(b"weights")])
    assert _push(server, model)["state"] == "staging"
    assert len(server.forms) == 1


@pytest.mark.parametrize("there", [NONE, LOST, _release(b"weights", "refused")])
def test_form_that_did_not_arrive_is_sent_again_whole(model: Path, there: Any) -> None:
    done = _release(b"weights")
    server = _Server([LOST, done], [there])
    assert _push(server, model) == done
    assert server.forms == [b"weights", b"weights"]


def test_version_of_somebody_else_is_not_taken_for_ones_own(model: Path) -> None:
    server = _Server([LOST, TAKEN], [_release(b"others")])
    with pytest.raises(CommandError, match="exists"):
        _push(server, model)


def test_server_that_was_never_there_is_not_waited_for(model: Path) -> None:
    server = _Server([NoConnection("The server cannot be reached.")], [])
    with pytest.raises(NoConnection):
        _push(server, model)
    done = _release(b"weights")
    server = _Server([LOST, NoConnection("It is restarted."), done], [NONE, NONE])
    assert _push(server, model) == done


def test_refused_form_is_not_sent_again_and_a_dead_server_is_given_up(model: Path) -> None:
    server = _Server([TAKEN], [])
    with pytest.raises(CommandError, match="exists"):
        _push(server, model)
    assert len(server.forms) == 1
    times = len(WAITS_S)
    server = _Server([LOST] * (times + 1), [LOST] * times)
    with pytest.raises(Unreachable):
        _push(server, model)

"""Guards ``edgefleet rollout``: exit codes that scripts rely on, and errors that say what to do."""

from __future__ import annotations

import io
import json
from typing import ClassVar

import pytest

from fleet_server import data_folder
from fleet_server.command_line import rollout
from fleet_server.command_line.rollout_view import fingerprint


@pytest.fixture
def here(server):
    """A running server that wrote down its address, as ``edgefleet server`` does."""
    data_folder.remember_url(server.settings.data_dir, server.settings.url)
    return server


def test_plan_is_tried_without_starting_anything(here, edgefleet) -> None:
    said = edgefleet("rollout", "plan", "digits", "--template", "dev")
    assert said.code == 0
    assert "at most 5.0%" in said.out and "error_rate" in said.out
    assert json.loads(edgefleet("rollout", "list", "--json").out) == []


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("watch",), "rollout start"),
        (("start", "0123456789ab"), "rollout list"),
        (("start", "digits", "1.0.0"), "model"),
        (("plan", "digits", "--plan", "/nowhere/plan.json"), "--template careful"),
        (("plan", "digits", "--template", "reckless"), "careful"),
        (("rollback", "0123456789ab"), "rollout list"),
    ],
)
def test_error_without_advice(here, edgefleet, words: tuple[str, ...], advice: str) -> None:
    said = edgefleet("rollout", *words)
    assert said.code == 1
    assert advice in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("state", "held", "code"),
    [
        ("completed", False, 0),
        ("rolled_back", False, 3),
        ("paused", True, 4),
        ("aborted", False, 4),
        ("running", False, None),
        ("paused", False, None),
        ("rolling_back", False, None),
    ],
)
def test_exit_code_of_watch(
    monkeypatch: pytest.MonkeyPatch, edgefleet, state: str, held: bool, code: int | None
) -> None:
    shown = _shown(state, held)
    asked: list[str] = []

    class Server:
        def get(self, path: str, **_: object) -> object:
            asked.append(path)
            # A rollout that is under way completes when it is asked for again.
            return shown if len(asked) < 3 else _shown("completed", False)

    monkeypatch.setattr(rollout, "connect", lambda _: Server())
    monkeypatch.setattr(rollout, "POLL_S", 0.0)
    said = edgefleet("rollout", "watch", "9f2c41d07ab3", "--until-done", "--json")
    assert said.code == (code or 0)
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert lines[0]["brief"]["state"] == state
    assert (len(lines) > 1) == (code is None)


def test_time_alone_prints_a_line() -> None:
    shown = _shown("running", False)
    assert fingerprint(shown) == fingerprint(shown | {"now_ms": 5, "explanation": "later"})


def _shown(state: str, held: bool) -> dict[str, object]:
    return {
        "now_ms": 1,
        "brief": {
            "id": "9f2c41d07ab3",
            "model": "digits",
            "version": "1.1.0",
            "cohort": "lab",
            "state": state,
            "held": held,
            "reason": "",
        },
        "stable_version": "1.0.0",
        "plan": {"looks": 2},
        "stages": [],
        "exposure": {"members": 1, "online": 1, "running": {}},
        "gates": [],
        "rollback": None,
        "explanation": "",
    }


def test_model_that_is_taken_for_a_draft(here, edgefleet) -> None:
    said = edgefleet("rollout", "start", "digits")
    assert said.code == 1
    assert "model list digits" in said.err


def test_ledger_that_fills_the_screen(here, edgefleet) -> None:
    said = edgefleet("rollout", "plan", "digits", "--template", "careful")
    # One line a guardrail, not one a look and stage; and nobody is told about 86400 s.
    assert said.out.count("error_rate") == 1
    assert "1 d" in said.out and "86400" not in said.out
    assert "No device of the cohort" in said.out


def test_id_that_asks_for_another_path(here, edgefleet) -> None:
    said = edgefleet("rollout", "show", "../devices")
    assert said.code == 1 and "Traceback" not in said.err


@pytest.mark.parametrize(("answer", "posted"), [("n\n", False), ("y\n", True)])
def test_rollback_of_the_wrong_rollout(
    monkeypatch: pytest.MonkeyPatch, edgefleet, answer: str, posted: bool
) -> None:
    """At a terminal, one sees which one it is before it happens."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    class Server:
        posts: ClassVar[list[str]] = []

        def get(self, path: str) -> object:
            brief = {"id": "0" * 12, "model": "digits", "version": "2.0.0", "cohort": "lab"}
            return {
                "brief": {**brief, "state": "running"},
                "exposure": {"running": {"candidate": 3}},
                "stable_version": "1.1.0",
            }

        def post(self, path: str, body: object) -> object:
            self.posts.append(path)
            return {"id": "0" * 12, "model": "digits", "version": "2.0.0", "state": "rolling_back"}

    monkeypatch.setattr(rollout, "connect", lambda _context: Server())
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    Server.posts.clear()
    said = edgefleet("rollout", "rollback", "0" * 12)
    assert "digits 2.0.0 in cohort lab" in said.out and "3 devices" in said.out
    assert bool(Server.posts) is posted
    assert said.code == (0 if posted else 1)

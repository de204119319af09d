"""Guards ``edgefleet rollout``: exit codes that scripts rely on, and errors that say what to do."""

from __future__ import annotations

import json

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

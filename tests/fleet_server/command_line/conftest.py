"""The command line as a person uses it: words in, exit code and text out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from fleet_server.command_line import main


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def edgefleet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> Callable[..., Said]:
    """Run a command in this process; its data folder is that of the fixture ``server``."""
    # Tables are as wide as they need to be.
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> Said:
        capsys.readouterr()
        arguments = ["edgefleet", "--data-dir", str(tmp_path / "data"), *words]
        monkeypatch.setattr(sys, "argv", arguments)
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run

"""Guards the simulator's command line from leaving a newcomer alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from fleet_server.command_line.device import Versions
from simulator.command_line import _sentence, main


class Numbered:
    """Knows every release by the first letter of its digest."""

    def name(self, model: str, digest: str) -> str:
        """As the server's command line names releases."""
        return f"{digest[0]}.0.0" if digest else "-"


def test_fleet_without_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("EDGEFLEET_URL", "EDGEFLEET_TOKEN", "EDGEFLEET_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert main(["live", "--devices", "1", "--data-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "edgefleet server" in said and "--token" in said


@pytest.mark.parametrize("words", [["live", "--devices", "0"], ["world", "--devices", "-1"], ["x"]])
def test_number_of_devices_that_cannot_be(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2


def test_release_that_is_named_by_its_digest() -> None:
    status: dict[str, Any] = {
        "active": {"a": "1" * 64, "b": "2" * 64, "c": "1" * 64, "d": ""},
        "connected": 3,
        "failed_inferences": 0,
    }
    said = _sentence(status, "digits", cast(Versions, Numbered()))
    assert said == "3 connected: 2 run 1.0.0, 1 run 2.0.0, 1 run nothing"
    status["failed_inferences"] = 7
    assert "7 predictions failed" in _sentence(status, "digits", cast(Versions, Numbered()))

"""Guards from gates that are asked for by the command line and never told to the server."""

import json
from typing import Any

import pytest

from fleet_server.command_line import gate_options
from fleet_server.command_line.output import CommandError


def test_options_become_fields() -> None:
    reasons = ["latency=the larger model = the one we want", "custom:fairness = site 1 is closed"]
    found = gate_options.fields("auc", 0.0, 0.05, reasons, "apps are ready")
    assert json.loads(found.pop("overrides")) == {
        "latency": "the larger model = the one we want",
        "custom:fairness": "site 1 is closed",
    }
    assert found == {
        "metric": "auc",
        "metric_margin": "0.0",
        "slice_margin": "0.05",
        "approve_schema": "apps are ready",
    }
    assert gate_options.fields("", None, None, None, "") == {}


@pytest.mark.parametrize("item", ["latency", "latency=", "latency= "])
def test_override_without_a_reason(item: str) -> None:
    with pytest.raises(CommandError, match="no reason"):
        gate_options.fields("", None, None, [item], "")


def test_what_failed_and_why_it_was_let_through_is_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {"gate": "latency", "name": "latency_us", "figure": 900.0, "bound": 500.0}
    failed = {**row, "passed": False, "note": "A row takes 900 us.", "overridden": "meant so"}
    fine = {**row, "gate": "robustness", "passed": True, "note": "All fine.", "overridden": ""}
    gate_options.describe_gates([{"name": "data"}, {"name": "gates", "gates": [failed, fine]}])
    said = capsys.readouterr().out
    assert "2 with 2 figures, 1 did not pass" in said
    assert "fails: A row takes 900 us." in said
    assert "overridden: meant so" in said
    assert "All fine." not in said
    gate_options.describe_gates([{"name": "data"}])
    assert capsys.readouterr().out == ""


def _row(gate: str, name: str, figure: float | None, bound: float | None, note: str) -> Any:
    found = {"gate": gate, "name": name, "figure": figure, "bound": bound, "note": note}
    return {**found, "passed": True, "overridden": ""}


def test_release_that_cannot_go_into_production_is_told_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [_row("data-sanity", "baseline_rows", 999, 50, "production: 1000")]
    gate_options.describe_gates([{"gates": rows}])
    assert "production: 1000" in capsys.readouterr().out
    rows[0]["figure"] = 1000
    gate_options.describe_gates([{"gates": rows}])
    assert "production: 1000" not in capsys.readouterr().out


def test_missing_values_that_pass_through_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        _row("robustness", "finite_missing", 0.3, 0.3, "do not send any"),
        _row("robustness", "finite_corrupted", 1.0, 1.0, "all corrupted"),
        _row("latency", "latency_us", 9.0, 12.0, "fast enough"),
        _row("memory", "memory_bytes", 9.0, None, "the first"),
    ]
    gate_options.describe_gates([{"gates": rows}])
    said = capsys.readouterr().out
    assert "do not send any" in said
    assert "fast enough" in said
    assert "all corrupted" not in said
    assert "the first" not in said
    rows[0]["figure"] = 1.0
    gate_options.describe_gates([{"gates": rows}])
    assert "do not send any" not in capsys.readouterr().out
    rows[1]["passed"] = False
    gate_options.describe_gates([{"gates": rows}])
    assert "all corrupted" in capsys.readouterr().out

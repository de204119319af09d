"""How a rollout looks in a terminal: its stages, its gates and its devices, on one page.

Takes the API's JSON and returns something for rich to draw. Nothing is asked of the server here.
"""

import json
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

STYLES = {
    "pass": "green",
    "passed": "green",
    "completed": "green",
    "fail": "bold red",
    "failed": "bold red",
    "rolling_back": "bold red",
    "rolled_back": "red",
    "inconclusive": "yellow",
    "paused": "yellow",
    "soaking": "cyan",
    "deploying": "cyan",
    "running": "cyan",
}


def picture(shown: dict[str, Any]) -> RenderableType:
    """Return a rollout as a page."""
    brief = shown["brief"]
    title = Text(f"{brief['model']} {shown['stable_version'] or 'nothing'} → {brief['version']}")
    title.append(f" in {brief['cohort']}, rollout {brief['id']}: ")
    title.append(_state(brief["state"]), STYLES.get(brief["state"], ""))
    if brief["held"]:
        title.append(" (held: inconclusive)", "yellow")
    return Group(title, _stages(shown), _exposure(shown), _gates(shown), Text(brief["reason"]))


def fingerprint(shown: dict[str, Any]) -> str:
    """Return what tells two pages apart: without what changes with time alone."""
    still = {key: shown[key] for key in shown if key not in ("explanation", "now_ms")}
    return json.dumps(still, sort_keys=True)


def _stages(shown: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("STAGE", "DEVICES", "STATE", "LOOKS", "SOAK", "LEFT"):
        table.add_column(column)
    looks = shown["plan"]["looks"]
    for stage in shown["stages"]:
        table.add_row(
            stage["name"],
            f"{stage['devices']} ({stage['percent']:g}%)",
            Text(_state(stage["state"]), STYLES.get(stage["state"], "dim")),
            f"{stage['looks_done']} of {looks}",
            _duration(stage["soak_ms"]),
            _left(stage, shown["now_ms"]),
        )
    return table


def _left(stage: dict[str, Any], now_ms: int) -> str:
    """Return how long a stage is observed yet, at least; nothing where it is not."""
    if stage["state"] != "soaking":
        return ""
    left_ms = stage["soaking_since_ms"] + stage["soak_ms"] - now_ms
    return _duration(left_ms // 1000 * 1000) if left_ms >= 1000 else "soon"


def _exposure(shown: dict[str, Any]) -> Text:
    exposure = shown["exposure"]
    running = exposure["running"]
    line = Text(
        f"{exposure['members']} devices, {exposure['online']} online: "
        f"{running.get('candidate', 0)} run the candidate, {running.get('stable', 0)} the stable "
        f"release."
    )
    rollback = shown["rollback"]
    if rollback is not None:
        line.append(f" {rollback['confirmed']} of {rollback['members']} confirmed the rollback")
        if rollback["last_changed_ms"] >= rollback["decided_ms"]:
            line.append(f", the last {rollback['last_changed_ms'] - rollback['decided_ms']} ms on")
        line.append(".")
    return line


def _gates(shown: dict[str, Any]) -> RenderableType:
    if not shown["gates"]:
        return Text("No gate has been judged yet.", "dim")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("GATE", "VERDICT", "FIGURE", "BOUND", "EVIDENCE", "DEVICES"):
        table.add_column(column)
    for gate in shown["gates"]:
        table.add_row(
            gate["guardrail"],
            Text(gate["verdict"], STYLES.get(gate["verdict"], "")),
            f"{gate['statistic']:.4g}",
            f"{gate['bound']:.4g}",
            f"{gate['evidence_kind']} = {gate['evidence']:.2g}, alpha = {gate['alpha']:.2g}",
            f"{gate['n_candidate']} against {gate['n_control']}",
        )
    return table


def _state(state: str) -> str:
    return state.replace("_", " ")


def _duration(milliseconds: int) -> str:
    for size, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min")):
        if milliseconds >= size:
            return f"{milliseconds / size:g} {unit}"
    return f"{milliseconds / 1000:g} s"

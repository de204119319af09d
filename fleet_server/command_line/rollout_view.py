"""How a rollout looks in a terminal: its stages, its gates and its devices, on one page.

Takes the API's JSON and returns something for rich to draw. Nothing is asked of the server here.
"""

import json
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fleet_server.command_line.output import duration

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
EVIDENCE = {"p": "p =", "e": "e =", "lower bound": "at least"}


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
            duration(stage["soak_ms"]),
            _left(stage, shown["now_ms"]) if shown["brief"]["state"] == "running" else "",
        )
    return table


def _left(stage: dict[str, Any], now_ms: int) -> str:
    """Return how long a stage is observed yet, at least; nothing where it is not."""
    if stage["state"] != "soaking":
        return ""
    left_ms = stage["soaking_since_ms"] + stage["soak_ms"] - now_ms
    return duration(left_ms // 1000 * 1000) if left_ms >= 1000 else "soon"


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
    for column in ("GATE", "VERDICT", "FIGURE", "BOUND", "EVIDENCE", "ALPHA", "DEVICES"):
        table.add_column(column)
    for gate in shown["gates"]:
        table.add_row(
            gate["guardrail"],
            Text(gate["verdict"], STYLES.get(gate["verdict"], "")),
            f"{gate['statistic']:.4g}",
            f"{gate['bound']:.4g}",
            f"{EVIDENCE.get(gate['evidence_kind'], gate['evidence_kind'])} {gate['evidence']:.2g}",
            f"{gate['alpha']:.2g}",
            f"{gate['n_candidate']} vs {gate['n_control']}",
        )
    return table


def _state(state: str) -> str:
    return state.replace("_", " ")


def plan_page(found: dict[str, Any]) -> RenderableType:
    """Return what a plan would do as a page: its stages in devices, and how alpha is spent."""
    lines: list[RenderableType] = []
    if not found["eligible"]:
        lines.append(Text("No device of the cohort can take part at present.", "yellow"))
    if found["first_release"]:
        lines.append(
            Text("The cohort runs nothing of this model yet: only the full stage is left.")
        )
    alpha = found["plan"]["alpha"]
    said = f"A release that is no worse is rolled back with a probability of at most {alpha:.1%}:"
    return Group(*lines, _planned_stages(found), Text(""), Text(said), _ledger(found["ledger"]))


def _planned_stages(found: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("STAGE", "KIND", "PERCENT", "DEVICES", "CONTROL", "SOAK", "DEADLINE"):
        table.add_column(column)
    arms = {arm["stage"]: arm for arm in found["arms"]}
    for stage in found["plan"]["stages"]:
        arm = arms[stage["name"]]
        table.add_row(
            stage["name"],
            stage["kind"],
            f"{stage['percent']:g}",
            str(arm["candidate"]),
            str(arm["control"]),
            duration(stage["soak_ms"]),
            duration(stage["deadline_ms"]),
        )
    return table


def _ledger(rows: list[dict[str, Any]]) -> RenderableType:
    """Return the ledger with one row for all stages in which a guardrail gets the same."""
    spent: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for row in rows:
        of_look = (row["guardrail"], f"{row['alpha']:.2g}")
        spent.setdefault(of_look, []).append((row["stage"], row["look"]))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("GUARDRAIL", "ALPHA", "LOOKS", "IN EACH OF"):
        table.add_column(column)
    for (guardrail, alpha), places in spent.items():
        looks = max(look for _, look in places)
        stages = ", ".join(dict.fromkeys(stage for stage, _ in places))
        table.add_row(guardrail, alpha, str(looks) if looks else "any time", stages)
    return table

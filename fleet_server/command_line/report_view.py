"""A compliance report as a page of Markdown: for people, and for the files of an audit."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report as text."""
    lines = [f"# {report['model']} {report['version']}: compliance report", ""]
    lines += [f"State: {report['state']}, stage: {report['stage']}.", "", "## Provenance", ""]
    for name, value in report["provenance"].items():
        shown = _time(value) if name.endswith("_ms") else value
        lines.append(f"- {name.removesuffix('_ms').replace('_', ' ')}: {_plain(shown)}")
    lines += ["", "## Gates at staging", ""]
    lines += _rows(
        f"{gate['gate']}: {gate['verdict']} {_plain(gate['figures'])}"
        for gate in report["staging_gates"]
    )
    lines += ["", "## Rollouts", ""]
    for rollout in report["rollouts"]:
        lines += _rollout(rollout)
    if not report["rollouts"]:
        lines.append("- none")
    lines += ["", "## Approvals", ""]
    lines += _rows(_entry(entry) for entry in report["approvals"])
    lines += ["", "## Safeguards that were skipped", ""]
    lines += _rows(report["skipped_safeguards"])
    lines += ["", "## Rollbacks", ""]
    lines += _rows(
        f"{_time(item['decided_ms'])}, rollout {item['rollout']}: {item['reason']} "
        f"{item['confirmed']} of {item['members']} devices confirmed."
        for item in report["rollbacks"]
    )
    lines += ["", "## Audit", ""]
    lines += _rows(_entry(entry) for entry in report["audit"])
    lines += ["", "## Not known", ""]
    lines += _rows(report["not_known"])
    return "\n".join(lines) + "\n"


def _rollout(rollout: dict[str, Any]) -> list[str]:
    exposure = rollout["exposure"]
    lines = [
        f"### {rollout['id']} to {rollout['cohort']}: {rollout['state'].replace('_', ' ')}",
        "",
        f"- created by {rollout['created_by']} on {_time(rollout['created_ms'])}; "
        f"{_time(rollout['started_ms'])} to {_time(rollout['ended_ms'])}",
        f"- plan {rollout['plan']['name']}: "
        + ", ".join(
            f"{stage['name']} {stage['percent']:g}%" for stage in rollout["plan"]["stages"]
        ),
        f"- exposure: {exposure['ran_it']} of {exposure['members']} devices ran it, the first on "
        f"{_time(exposure['first_exposed_ms'])}",
    ]
    for decision in rollout["decisions"]:
        lines.append(f"- {_time(decision['decided_ms'])} {decision['kind']}: {decision['reason']}")
        for gate in decision["gates"]:
            lines.append(
                f"  - {gate['guardrail']}: {gate['verdict']} "
                f"({gate['statistic']:.4g} against {gate['bound']:.4g}). {gate['detail']}"
            )
    return [*lines, ""]


def _entry(entry: dict[str, Any]) -> str:
    ticket = f" [{entry['change_ticket']}]" if entry["change_ticket"] else ""
    return (
        f"{entry['timestamp']} {entry['user']}{ticket}: {entry['action']}, {entry['outcome']}. "
        f"{entry['reason']} (record {entry['sequence']}, {entry['hash'][:12]})"
    )


def _rows(items: Iterable[str]) -> list[str]:
    return [f"- {item}" for item in items] or ["- none"]


def _time(milliseconds: int) -> str:
    if not milliseconds:
        return "-"
    moment = datetime.fromtimestamp(milliseconds / 1_000, UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} = {_plain(item)}" for name, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value) or "-"
    return str(value) if value not in ("", None) else "-"

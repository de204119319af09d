"""From what the API shows of a rollout to its part of the story.

Decides which figures of a rollout are told; none is computed anew.
"""

from typing import Any

from simulator.demo.story import Distribution, GateStory, RolloutStory, StageStory

SMALLEST_SHOWN = 0.002
"""Outer bins in which neither arm has as much as this share are left out of a picture."""


def rollout_story(shown: dict[str, Any]) -> RolloutStory:
    """Return the story of a rollout as ``GET /v1/rollouts/ID`` shows it."""
    brief = shown["brief"]
    return RolloutStory(
        version=brief["version"],
        outcome=brief["state"],
        began_ms=brief["started_ms"],
        ended_ms=brief["ended_ms"],
        why=_why(shown),
        stages=[_stage(shown, number) for number in range(len(shown["stages"]))],
        evidence=shown["evidence"],
    )


def distributions(shown: dict[str, Any]) -> list[Distribution]:
    """Return the outputs in both arms on which the newest drift verdict rests."""
    for gate in _judged(shown, None):
        figures = gate["figures"]
        if gate["guardrail"] == "output_drift" and "distribution_candidate" in figures:
            return [_distribution(figures)]
    return []


def _why(shown: dict[str, Any]) -> str:
    for entry in _newest_first(shown):
        if entry["kind"] in ("roll_back", "hold", "complete"):
            return str(entry["decision"]["reason"])
    return str(shown["brief"]["reason"])


def _newest_first(shown: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(shown["evidence"], key=lambda entry: entry["decided_ms"], reverse=True)


def _judged(shown: dict[str, Any], stage: int | None) -> list[dict[str, Any]]:
    """Return the newest result of each guardrail, of one stage or of any."""
    found: dict[str, dict[str, Any]] = {}
    for entry in _newest_first(shown):
        if stage is None or entry["stage"] == stage:
            for gate in entry["decision"]["gates"]:
                found.setdefault(gate["guardrail"], gate)
    return list(found.values())


def _stage(shown: dict[str, Any], number: int) -> StageStory:
    stage = shown["stages"][number]
    return StageStory(
        name=stage["name"],
        kind=stage["kind"],
        percent=stage["percent"],
        state=stage["state"],
        devices=stage["devices"] if stage["began_ms"] else 0,
        began_ms=stage["began_ms"] or None,
        ended_ms=stage["ended_ms"] or None,
        gates=[
            GateStory(
                gate=gate["guardrail"],
                verdict=gate["verdict"],
                sentence=gate["detail"],
                figures={
                    "statistic": gate["statistic"],
                    "bound": gate["bound"],
                    gate["evidence_kind"]: gate["evidence"],
                    "alpha": gate["alpha"],
                },
                candidates=gate["n_candidate"],
                controls=gate["n_control"],
            )
            for gate in _judged(shown, number)
        ],
    )


def _distribution(figures: dict[str, Any]) -> Distribution:
    candidate = [float(share) for share in figures["distribution_candidate"]]
    control = [float(share) for share in figures["distribution_control"]]
    labels = [str(name) for name in figures["categories"]]
    labels = [*labels, "other"] if labels else _ranges([float(edge) for edge in figures["edges"]])
    rows = list(zip(labels, candidate, control, strict=True))
    while rows and max(rows[-1][1:]) < SMALLEST_SHOWN:
        rows.pop()
    while rows and max(rows[0][1:]) < SMALLEST_SHOWN:
        rows.pop(0)
    return Distribution(
        feature=str(figures["feature"]),
        labels=[row[0] for row in rows],
        candidate=[row[1] for row in rows],
        control=[row[2] for row in rows],
    )


def _ranges(edges: list[float]) -> list[str]:
    """Return a label for each bin between edges, and for what is no number."""
    return ["below", *(f"{edge:.3g}" for edge in edges), "none"]

"""What the demo found out, as data: written to ``report.json``, read by the page and the summary.

Decides the form of the report and whether the demo went as it must. How it is gathered is in
:mod:`simulator.demo.run`, how it is shown in :mod:`simulator.demo.page`.
"""

import msgspec


class ReleaseStory(msgspec.Struct, frozen=True):
    """One release: sizes in bytes before and after quantising, agreement of the two in percent,
    and the accuracy in percent on what devices really see.
    """

    version: str
    digest: str
    float_bytes: int
    int8_bytes: int
    agreement_percent: float
    field_accuracy_percent: float


class GateStory(msgspec.Struct, frozen=True):
    """What one gate said last: its figure against its bound, and how many devices it compared."""

    gate: str
    verdict: str
    sentence: str
    figures: dict[str, float]
    candidates: int
    controls: int


class StageStory(msgspec.Struct, frozen=True):
    """One stage; times in milliseconds since 1970, None where it was not reached."""

    name: str
    kind: str
    percent: float
    state: str
    devices: int
    began_ms: int | None
    ended_ms: int | None
    gates: list[GateStory]


class RolloutStory(msgspec.Struct, frozen=True):
    """One rollout and its outcome, ``why`` in a sentence."""

    version: str
    outcome: str
    began_ms: int
    ended_ms: int
    why: str
    stages: list[StageStory]
    evidence: list[object]


class Distribution(msgspec.Struct, frozen=True):
    """Shares (adding up to 1) of one output feature in the two arms, a label a share."""

    feature: str
    labels: list[str]
    candidate: list[float]
    control: list[float]


class Sample(msgspec.Struct, frozen=True):
    """How many devices ran each version at one moment."""

    at_ms: int
    devices: dict[str, int]


class Rollback(msgspec.Struct, frozen=True):
    """From the decision to the last device that swapped, in milliseconds by the devices' clocks;
    ``confirmed_ms`` until the server had heard it from all of them.
    """

    decided_ms: int
    rollback_ms: int
    confirmed_ms: int
    devices: int


class Story(msgspec.Struct, frozen=True):
    """The whole demo. Durations in seconds or milliseconds, as their names say."""

    edgefleet: str
    seed: int
    devices: int
    processes: int
    broker: str
    duration_s: float
    releases: list[ReleaseStory]
    rollouts: list[RolloutStory]
    rollback: Rollback | None
    rollback_ms: int | None
    predictions: int
    failed_inferences: int
    artifact_bytes: int
    control_bytes: int
    report_bytes: int
    devices_per_release: dict[str, int]
    distributions: list[Distribution]
    timeline: list[Sample]


def shortcomings(story: Story, *, good: str, bad: str) -> list[str]:
    """Return what did not happen that must; an empty list for a demo that did what it shows.

    Args:
        story: what happened.
        good: the version that must be on every device at the end.
        bad: the version that must have been rolled back in a canary stage.
    """
    found = []
    outcomes = {rollout.version: rollout for rollout in story.rollouts}
    for rollout in story.rollouts:
        expected = "rolled_back" if rollout.version == bad else "completed"
        if rollout.outcome != expected:
            found.append(f"{rollout.version} is {rollout.outcome}, not {expected}: {rollout.why}")
    for version in (good, bad):
        if version not in outcomes:
            found.append(f"{version} was never rolled out")
    if bad in outcomes:
        ended = [stage for stage in outcomes[bad].stages if stage.state == "failed"]
        if not any(stage.kind == "canary" for stage in ended):
            found.append(f"{bad} did not fail in a canary stage")
        if not outcomes[bad].evidence:
            found.append(f"no evidence is stored for the rollback of {bad}")
    if story.failed_inferences:
        found.append(f"{story.failed_inferences} inferences failed")
    if story.devices_per_release != {good: story.devices}:
        found.append(f"not every device runs {good}: {story.devices_per_release}")
    if story.rollback is None:
        found.append("nothing was measured of a rollback")
    return found


def plain_reason(story: Story) -> str:
    """Return why the bad release was taken back, for somebody who knows nothing of statistics."""
    for rollout in story.rollouts:
        for stage in rollout.stages:
            for gate in stage.gates:
                if gate.verdict == "fail" and gate.gate == "output_drift":
                    draws = round(1 / max(gate.figures.get("p", 1.0), 1e-12))
                    return (
                        f"On the {gate.candidates} devices with {rollout.version} the answers were "
                        "far from those that it gave when it was tested. On the other "
                        f"{gate.controls}, which saw the same kind of images at the same time, "
                        "they were not. Which devices got it was drawn by lot: such a difference "
                        f"comes about by chance in one of {draws:,} draws."
                    )
        if rollout.outcome == "rolled_back":
            return rollout.why
    return ""

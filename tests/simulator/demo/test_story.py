"""The demo must not call itself a success when something did not happen."""

from typing import Any

import pytest
from msgspec.structs import replace

from simulator.demo import page
from simulator.demo.story import (
    Distribution,
    GateStory,
    ReleaseStory,
    Rollback,
    RolloutStory,
    Sample,
    StageStory,
    Story,
    shortcomings,
)

GOOD, BAD = "1.1.0", "2.0.0"


def stage(name: str, kind: str, state: str) -> StageStory:
    gate = GateStory("output_drift", "fail", "They answer <8> too often.", {"p": 0.01}, 3, 57)
    return StageStory(name, kind, 5.0, state, 3, 1_000, 6_000, [gate])


def rollout(version: str, outcome: str, *stages: StageStory) -> RolloutStory:
    return RolloutStory(version, outcome, 1_000, 9_000, "Because & so.", list(stages), [{"p": 1}])


def story(**changes: Any) -> Story:
    told = Story(
        edgefleet="0.1.0",
        seed=1,
        devices=60,
        processes=3,
        broker="embedded broker",
        duration_s=80.0,
        releases=[ReleaseStory(BAD, "d" * 64, 80_000, 26_000, 99.7, 31.0)],
        rollouts=[
            rollout(GOOD, "completed", stage("full", "full", "passed")),
            rollout(BAD, "rolled_back", stage("canary-5", "canary", "failed")),
        ],
        rollback=Rollback(5_000, 80, 140, 3),
        rollback_ms=80,
        predictions=10_000,
        failed_inferences=0,
        artifact_bytes=1_000_000,
        control_bytes=200_000,
        report_bytes=300_000,
        devices_per_release={GOOD: 60},
        distributions=[Distribution("top_class", ["0", "1"], [0.9, 0.1], [0.5, 0.5])],
        timeline=[
            Sample(0, {"nothing yet": 60}),
            Sample(4_000, {GOOD: 60}),
            Sample(6_000, {GOOD: 57, BAD: 3}),
            Sample(9_000, {GOOD: 60}),
        ],
    )
    return replace(told, **changes)


def test_good_demo_is_called_a_failure() -> None:
    assert shortcomings(story(), good=GOOD, bad=BAD) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"failed_inferences": 1},
        {"devices_per_release": {GOOD: 59, BAD: 1}},
        {"devices_per_release": {GOOD: 59}},
        {"rollback": None},
        {"rollouts": [rollout(GOOD, "completed")]},
        {
            "rollouts": [
                rollout(GOOD, "paused"),
                rollout(BAD, "rolled_back", stage("canary-5", "canary", "failed")),
            ]
        },
        {
            "rollouts": [
                rollout(GOOD, "completed"),
                rollout(BAD, "rolled_back", stage("full", "full", "failed")),
            ]
        },
        {
            "rollouts": [
                rollout(GOOD, "completed"),
                replace(
                    rollout(BAD, "rolled_back", stage("canary-5", "canary", "failed")), evidence=[]
                ),
            ]
        },
        {"rollouts": [rollout(GOOD, "completed"), rollout(BAD, "completed")]},
    ],
)
def test_failed_demo_is_called_a_success(changes: dict[str, Any]) -> None:
    assert shortcomings(story(**changes), good=GOOD, bad=BAD)


def test_page_loads_something_from_somewhere() -> None:
    html = page.render(story())
    for sign in ("http://", "https://", "<script", "<link", "url("):
        assert sign not in html


def test_text_of_a_model_becomes_markup() -> None:
    html = page.render(story())
    assert "They answer &lt;8&gt; too often." in html
    assert "Because &amp; so." in html


def test_page_of_a_demo_that_went_wrong_early() -> None:
    told = story(rollouts=[], rollback=None, rollback_ms=None, distributions=[], timeline=[])
    assert "Nothing was rolled out" in page.render(told)


def test_every_device_is_drawn_at_every_moment() -> None:
    html = page.render(story())
    assert html.count("<polygon") == 3, "one area for each version that ran"

"""An agent killed with SIGKILL before and after everything that changes its device.

The points are enumerated by a life in which nobody is killed. At each of them an agent dies, and
its next start must answer at once, with the old release or the new one, and then reach the goal.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_agent.agent import Agent
from device_agent.shell.clock import SystemClock
from device_agent.shell.identity import enrol
from device_agent.shell.store import Store
from device_agent.shell.workshop import Workshop
from fleet_contract.messages.progress import Phase
from fleet_contract.trust.directive import ReleaseRef
from tests.device_agent.shell.toy_fleet import DEVICE, MODEL, ToyFleet

pytestmark = pytest.mark.slow


class Lives:
    """Lets agents live, and die, in copies of a folder."""

    def __init__(self, template: Path, helper: "subprocess.Popen[str]") -> None:
        self._template = template
        self._helper = helper

    def copy(self) -> Path:
        folder = self._template.with_name("device")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._template, folder)
        return folder

    def live(self, folder: Path, goal: ReleaseRef, kill_at: int = -1) -> dict[str, Any]:
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        life = {"folder": str(folder), "kill_at": kill_at, "goal": goal.digest}
        self._helper.stdin.write(json.dumps(life) + "\n")
        self._helper.stdin.flush()
        line = self._helper.stdout.readline()
        assert line, "the helper process ended"
        found: dict[str, Any] = json.loads(line)
        for row in found["trace"]:
            found.update(row)
        return found


@pytest.fixture
def fleet() -> Iterator[ToyFleet]:
    fleet = ToyFleet()
    yield fleet
    fleet.close()


@pytest.fixture
def releases(fleet: ToyFleet) -> tuple[ReleaseRef, ReleaseRef]:
    return fleet.release("1.0.0"), fleet.release("2.0.0", opset=14)


@pytest.fixture
def lives(
    fleet: ToyFleet, tmp_path: Path, releases: tuple[ReleaseRef, ReleaseRef]
) -> Iterator[Lives]:
    """A folder with an agent that runs 1.0.0, as it is after a clean stop."""
    template = tmp_path / "template"
    workshop = Workshop()
    enrol(Store(template), fleet.token(), DEVICE, workshop.capabilities, SystemClock())
    fleet.admit()
    fleet.direct(releases[0], standby=releases[0], soak_ms=20)
    with Agent.open(template, workshop=workshop) as agent:
        agent.wait_for(MODEL, version="1.0.0", timeout_s=60)
        fleet.wait_until(lambda: _phase(fleet) is Phase.SUCCEEDED)
    workshop.close()
    script = Path(__file__).with_name("mortal_agent.py")
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as helper:
        yield Lives(template, helper)


def _phase(fleet: ToyFleet) -> Phase | None:
    models = fleet.progress[-1].models if fleet.progress else []
    return models[0].phase if models else None


def check_every_point(
    lives: Lives, fleet: ToyFleet, *, goal: ReleaseRef, working: set[str], expected: set[str]
) -> None:
    whole = lives.live(lives.copy(), goal)
    assert whole["reached"], whole
    points = [row["point"] for row in whole["trace"] if "point" in row]
    assert expected <= set(points), "the enumeration misses what this test is about"
    died = 0
    for kill_at, point in enumerate(points):
        folder = lives.copy()
        first = lives.live(folder, goal, kill_at)
        died += first["killed"]
        again = lives.live(folder, goal)
        assert again["first"] in working, f"killed at {point}: {again}"
        assert again["reached"], f"killed at {point}: {again}"
        assert again["last"] == goal.digest, f"killed at {point}: {again}"
    # Lives differ a little, since what comes over the network has its own order.
    assert died >= 0.9 * len(points)


def test_killed_while_going_forward(
    lives: Lives, fleet: ToyFleet, releases: tuple[ReleaseRef, ReleaseRef]
) -> None:
    old, new = releases
    fleet.direct(new, standby=old, soak_ms=20)
    check_every_point(
        lives,
        fleet,
        goal=new,
        working={old.digest, new.digest},
        expected={
            *(f"{side} {what}" for side in ("before", "after") for what in ("Persist", "rename")),
            *(f"{side} {what}" for side in ("before", "after") for what in ("Fetch", "Activate")),
        },
    )


def test_killed_while_going_back(
    lives: Lives, fleet: ToyFleet, releases: tuple[ReleaseRef, ReleaseRef]
) -> None:
    old, new = releases
    fleet.direct(new, standby=old, soak_ms=20)
    folder = lives.copy()
    assert lives.live(folder, new)["reached"]
    shutil.rmtree(lives._template)
    folder.rename(lives._template)
    fleet.direct(old, standby=new, soak_ms=20)
    fleet.requests.clear()
    check_every_point(
        lives,
        fleet,
        goal=old,
        working={old.digest, new.digest},
        expected={"before Activate", "after Activate", "before Persist", "after Persist"},
    )
    assert fleet.requests == [], "going back needs no server, whatever happened"

"""A whole story in virtual time: a fleet, its first release, a better one and a bad one.

Decides who is in the fleet and what the releases are like; from one seed, the same story each time.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from device_agent.core.state import Record
from fleet_contract.manifest import manifest_path
from fleet_contract.trust.directive import ReleaseRef
from fleet_server.rollouts.decide import Decision, Kind
from fleet_server.rollouts.plan import (
    MINUTE_MS,
    SECOND_MS,
    Guardrails,
    RolloutPlan,
    Stage,
    StageKind,
)
from fleet_server.rollouts.snapshot import ReleaseFacts
from fleet_server.rollouts.states import RolloutState
from simulator.errors import SimulatorError
from simulator.world.behaviour import CLASSES, SCHEMA, Profile, baseline_of
from simulator.world.device import Counts, Release, VirtualDevice
from simulator.world.kernel import Kernel
from simulator.world.network import Network
from simulator.world.server import Course, VirtualServer

START_MS = 1_800_000_000_000
FLEET, COHORT, MODEL = "home", "default", "digits"
DAY_MS = 24 * 60 * MINUTE_MS

_EVEN = (1.0,) * CLASSES
GOOD = Profile(_EVEN, confidence=0.80)
BETTER = Profile(_EVEN, confidence=0.86)
BAD_STAGED = Profile(_EVEN, confidence=0.88)
BAD_IN_THE_FIELD = Profile((0.5, 1, 3, 0.5, 0.5, 0.5, 0.5, 0.5, 2, 0.5), confidence=0.62)

PLAN = RolloutPlan(
    name="world",
    stages=(
        Stage(
            name="shadow",
            kind=StageKind.SHADOW,
            percent=5,
            soak_ms=5 * MINUTE_MS,
            minimum_devices=3,
            minimum_predictions=500,
            deadline_ms=60 * MINUTE_MS,
        ),
        Stage(
            name="canary-1",
            kind=StageKind.CANARY,
            percent=1,
            soak_ms=8 * MINUTE_MS,
            minimum_devices=3,
            minimum_predictions=500,
            deadline_ms=60 * MINUTE_MS,
        ),
        Stage(
            name="canary-25",
            kind=StageKind.CANARY,
            percent=25,
            soak_ms=5 * MINUTE_MS,
            minimum_devices=5,
            minimum_predictions=5_000,
            deadline_ms=60 * MINUTE_MS,
        ),
        Stage(
            name="full",
            kind=StageKind.FULL,
            percent=100,
            soak_ms=3 * MINUTE_MS,
            minimum_devices=5,
            minimum_predictions=10_000,
            deadline_ms=60 * MINUTE_MS,
        ),
    ),
    report_every_ms=MINUTE_MS,
    spread_ms=30 * SECOND_MS,
    device_soak_ms=MINUTE_MS,
    lookback_ms=DAY_MS,
    looks=3,
    guardrails=Guardrails(silence_grace_ms=MINUTE_MS),
)


HASTY_PLAN = replace(PLAN, name="hasty", stages=PLAN.stages[1:])
"""Without the shadow stage, which would find the bad release before any device answers with it."""


@dataclass(frozen=True)
class Chapter:
    """One rollout of the story and how it ended; times in virtual milliseconds."""

    version: str
    state: RolloutState
    took_ms: int
    reached_devices: int
    rollback_ms: int | None
    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Outcome:
    """What a run came to; ``trace`` is the digest of everything that happened, in order."""

    seed: int
    devices: int
    chapters: tuple[Chapter, ...]
    devices_per_release: dict[str, int]
    predictions: int
    without_model: int
    events: int
    messages: int
    windows: int
    virtual_ms: int
    trace: str


class World:
    """A fleet, its server and the network between them."""

    def __init__(self, *, seed: int, devices: int) -> None:
        self.seed = seed
        self.kernel = Kernel(START_MS)
        self._chance = random.Random(seed)
        self.network = Network(self.kernel, random.Random(self._chance.getrandbits(64)))
        self.server = VirtualServer(
            self.kernel,
            self.network,
            fleet=FLEET,
            cohort=COHORT,
            key=self._chance.randbytes(32),
        )
        self.releases: dict[str, Release] = {}
        self.counts = Counts()
        self._rollouts = 0
        self._devices = [self._enrol(number) for number in range(devices)]

    def _enrol(self, number: int) -> VirtualDevice:
        name = f"device-{number:05d}"
        record = Record(FLEET, name, self.server.keyset())
        device = VirtualDevice(
            record,
            kernel=self.kernel,
            network=self.network,
            releases=self.releases,
            chance=random.Random(self._chance.getrandbits(64)),
            numbers=np.random.default_rng([self.seed, number]),
            counts=self.counts,
        )
        self.kernel.after(1_000 + self._chance.randrange(10_000), device.boot)
        self.kernel.after(500, lambda: self.server.enrol(name))
        return device

    def settle(self) -> None:
        """Let time pass until every device is connected."""
        views = self.server.views
        self._wait(
            lambda: len(views) == len(self._devices) and all(v.online for v in views.values()),
            "every device to connect",
        )

    def roll_out(
        self, version: str, staged: Profile, field: Profile, plan: RolloutPlan = PLAN
    ) -> Chapter:
        """Roll a release out, and let time pass until the rollout has ended.

        Args:
            version: its version.
            staged: how it behaved on its baseline data.
            field: how it behaves on the devices.
            plan: its stages.
        """
        self._rollouts += 1
        digest = f"{self._chance.getrandbits(256):064x}"
        ref = ReleaseRef(manifest_path(MODEL, digest), digest)
        self.releases[digest] = Release(ref, version, self._rollouts, field)
        facts = ReleaseFacts(ref, version, SCHEMA.outputs, baseline_of(staged))
        began_ms = self.kernel.now_ms
        salt = f"{self._chance.getrandbits(128):032x}"
        course = self.server.start(self._rollouts, MODEL, facts, plan, salt)
        self._wait(lambda: course.ended or course.facts.state is RolloutState.PAUSED, version)
        reached = sum(
            f"{MODEL}/{digest}" in view.first_running_ms for view in self.server.views.values()
        )
        return Chapter(
            version=version,
            state=course.facts.state,
            took_ms=self.kernel.now_ms - began_ms,
            reached_devices=reached,
            rollback_ms=self._rollback_ms(course),
            decisions=tuple(course.decisions),
        )

    def _rollback_ms(self, course: Course) -> int | None:
        """Return how long the last device took from the decision, by the devices' reports."""
        decided = [
            item.evidence.decided_ms
            for item in course.decisions
            if item.kind is Kind.ROLL_BACK and item.evidence is not None
        ]
        if not decided:
            return None
        changed = [
            view.progress[MODEL].changed_ms
            for view in self.server.views.values()
            if view.progress[MODEL].changed_ms >= decided[0]
        ]
        return max(changed, default=decided[0]) - decided[0]

    def _wait(self, until: Callable[[], bool], what: str) -> None:
        if not self.kernel.run(until, self.kernel.now_ms + DAY_MS):
            raise SimulatorError(f"waited a virtual day for {what}")

    def running(self) -> dict[str, int]:
        """Return how many devices really run each version."""
        versions = {digest: release.version for digest, release in self.releases.items()}
        return dict(Counter(versions[digest] for digest in self.counts.running.values()))


def run(*, seed: int, devices: int) -> Outcome:
    """Play the story: 1.0.0 everywhere, 1.1.0 through its stages, 2.0.0 found out and taken back.

    Raises:
        SimulatorError: if something that must happen did not within a virtual day.
    """
    world = World(seed=seed, devices=devices)
    world.settle()
    chapters = (
        world.roll_out("1.0.0", GOOD, GOOD),
        world.roll_out("1.1.0", BETTER, BETTER),
        world.roll_out("2.0.0", BAD_STAGED, BAD_IN_THE_FIELD, HASTY_PLAN),
    )
    return Outcome(
        seed=seed,
        devices=devices,
        chapters=chapters,
        devices_per_release=world.running(),
        predictions=world.counts.predictions,
        without_model=world.counts.without_model,
        events=world.kernel.events,
        messages=world.network.messages,
        windows=world.server.windows_counted,
        virtual_ms=world.kernel.now_ms - START_MS,
        trace=world.kernel.digest(),
    )

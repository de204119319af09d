"""Fleets in memory for the deciding modules: devices with a past, and what they did since."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from fleet_contract.bucket import arm_end, bucket_of
from fleet_contract.features import (
    INNER_EDGES,
    CategoricalFeature,
    FeatureSet,
    NumericFeature,
    Reduction,
    Source,
)
from fleet_contract.messages.progress import Phase
from fleet_contract.sketches.categorical import CategoricalSketch
from fleet_contract.sketches.features import FeatureSketches
from fleet_contract.sketches.latency import of as latencies
from fleet_contract.sketches.numeric import NumericBank, NumericSketch
from fleet_contract.trust.directive import ReleaseRef
from fleet_server.rollouts.decide import arm_size
from fleet_server.rollouts.plan import Guardrails, RolloutPlan, Stage, StageKind
from fleet_server.rollouts.snapshot import (
    DeviceRecord,
    ReleaseFacts,
    RolloutFacts,
    Snapshot,
    StageFacts,
    Usage,
)
from fleet_server.rollouts.states import RolloutState, StageState

NOW_MS = 1_000_000_000
SALT = "ab" * 16
CLASSES = [str(i) for i in range(10)]
SCORE = NumericFeature(
    name="top_probability",
    source=Source("probabilities", Reduction.TOP_PROBABILITY),
    grid_bits=20,
    edges=[i / (INNER_EDGES + 1) for i in range(1, INNER_EDGES + 1)],
)
LABEL = CategoricalFeature(
    name="label", source=Source("probabilities", Reduction.TOP_CLASS), vocabulary=CLASSES
)
OUTPUTS = FeatureSet([SCORE], [LABEL])


def _score(values: np.ndarray) -> NumericSketch:
    bank = NumericBank([SCORE])
    bank.update(np.clip(values, 0, 1)[:, None])
    return bank.sketches()[0]


@dataclass(frozen=True)
class Behaviour:
    """How a release behaves: its error rate, latency and score distribution (beta)."""

    error_rate: float = 0.01
    latency_us: float = 5_000.0
    beta: tuple[float, float] = (8.0, 2.0)


@dataclass
class Fleet:
    """Draws devices; predictions of a device are correlated (each has its own rate and bias)."""

    seed: int = 0
    devices: int = 60
    rows: int = 400
    correlation: float = 0.05

    def sketches(self, rng: np.random.Generator, behaviour: Behaviour, rows: int, bias: float):
        a, b = behaviour.beta
        scores = rng.beta(a, b, rows) + bias
        weights = np.exp(rng.normal(0, 0.2, len(CLASSES)))
        counts = rng.multinomial(rows, weights / weights.sum())
        return FeatureSketches([_score(scores)], [CategoricalSketch([*counts.tolist(), 0])])

    def baseline(self, behaviour: Behaviour) -> FeatureSketches:
        rng = np.random.default_rng(7)
        a, b = behaviour.beta
        counts = [2_000] * len(CLASSES)
        return FeatureSketches([_score(rng.beta(a, b, 20_000))], [CategoricalSketch([*counts, 0])])

    def usage(self, rng: np.random.Generator, behaviour: Behaviour, factor: float, speed: float):
        rate = min(1.0, behaviour.error_rate * factor)
        errors = int(rng.binomial(self.rows, rate))
        took = rng.lognormal(np.log(behaviour.latency_us * speed), 0.25, 60)
        return Usage(self.rows, errors, latencies([int(x) for x in took]))

    def snapshot(
        self,
        plan: RolloutPlan,
        *,
        stage: int = 0,
        stable: Behaviour | None = None,
        candidate: Behaviour | None = None,
        elapsed_ms: int | None = None,
        now_ms: int = NOW_MS,
    ) -> Snapshot:
        """A fleet in which the arm of this stage runs the candidate and everything is reported."""
        stable = stable or Behaviour()
        candidate = candidate or stable
        rng = np.random.default_rng(self.seed)
        planned = plan.stages[stage]
        salt = rng.bytes(16).hex()
        names = [f"device-{i:04}" for i in range(self.devices)]
        buckets = {name: bucket_of(salt, name) for name in names}
        last = arm_end(buckets.values(), arm_size(len(names), planned.percent)) or 0
        if planned.percent >= 100:
            last = (1 << 64) - 1
        began_ms = now_ms - planned.soak_ms - 1_000
        facts = RolloutFacts(
            id=f"rollout-{self.seed}",
            fleet="home",
            cohort="default",
            model="digits",
            state=RolloutState.RUNNING,
            salt=salt,
            candidate=ReleaseFacts(
                ReleaseRef("manifests/digits/c.json", "c" * 64),
                "1.1.0",
                OUTPUTS,
                self.baseline(candidate),
            ),
            stable=ReleaseFacts(
                ReleaseRef("manifests/digits/a.json", "a" * 64),
                "1.0.0",
                OUTPUTS,
                self.baseline(stable),
            ),
            started_ms=began_ms - 1,
            exposed_ms=began_ms,
        )
        soaking_ms = now_ms - (planned.soak_ms if elapsed_ms is None else elapsed_ms)
        present = StageFacts(
            index=stage,
            state=StageState.SOAKING,
            began_ms=began_ms,
            deadline_at_ms=began_ms + planned.deadline_ms,
            arm_last=last,
            soaking_since_ms=soaking_ms,
        )
        records = []
        shadow = planned.kind is StageKind.SHADOW
        for name in names:
            in_arm = buckets[name] <= last
            runs = candidate if in_arm else stable
            # Intra-class correlation: a device's own rate is beta-distributed around the fleet's.
            spread = max((1 - self.correlation) / self.correlation, 1.0)
            own = rng.beta(stable.error_rate * spread, (1 - stable.error_rate) * spread)
            factor = own / stable.error_rate
            speed = float(np.exp(rng.normal(0, 0.4)))
            before = self.usage(rng, stable, factor, speed)
            after = self.usage(rng, runs, factor, speed)
            records.append(
                DeviceRecord(
                    name=name,
                    bucket=buckets[name],
                    eligible=True,
                    in_arm=in_arm,
                    at_risk=True,
                    online=True,
                    phase=(Phase.SHADOWING if shadow else Phase.SUCCEEDED)
                    if in_arm
                    else Phase.IDLE,
                    reason=None,
                    rollout=facts.id,
                    target=("c" if in_arm else "a") * 64,
                    active=("c" if in_arm and not shadow else "a") * 64,
                    epoch=1,
                    changed_ms=began_ms,
                    last_report_ms=now_ms - 500,
                    before=before,
                    after=after,
                    trial=after if in_arm else Usage(),
                    outputs=self.sketches(rng, runs, self.rows, float(rng.normal(0, 0.02))),
                    pairs=None,
                )
            )
        return Snapshot(now_ms, facts, plan, present, tuple(records))


@pytest.fixture
def fleet() -> type[Fleet]:
    return Fleet


@pytest.fixture
def behaviour() -> type[Behaviour]:
    return Behaviour


@pytest.fixture
def change() -> Callable[..., Snapshot]:
    """Replace fields of the records of a snapshot that a predicate picks."""

    def apply(snapshot: Snapshot, pick: Callable[[DeviceRecord], bool], **fields) -> Snapshot:
        return replace(
            snapshot,
            devices=tuple(
                replace(device, **fields) if pick(device) else device for device in snapshot.devices
            ),
        )

    return apply


def _plan() -> RolloutPlan:
    return RolloutPlan(
        name="test",
        stages=(
            Stage(
                name="canary-5",
                kind=StageKind.CANARY,
                percent=5.0,
                soak_ms=60_000,
                minimum_devices=3,
                minimum_predictions=100,
                deadline_ms=600_000,
            ),
            Stage(
                name="canary-25",
                kind=StageKind.CANARY,
                percent=25.0,
                soak_ms=60_000,
                minimum_devices=5,
                minimum_predictions=100,
                deadline_ms=600_000,
            ),
            Stage(
                name="full",
                kind=StageKind.FULL,
                percent=100.0,
                soak_ms=60_000,
                minimum_devices=5,
                minimum_predictions=100,
                deadline_ms=600_000,
            ),
        ),
        report_every_ms=1_000,
        device_soak_ms=1_000,
        guardrails=Guardrails(silence_intervals=5, silence_grace_ms=10_000),
    )


@pytest.fixture
def plan() -> RolloutPlan:
    """Three stages with times that are easy to count with."""
    return _plan()


@pytest.fixture(scope="module")
def fleet_type() -> type[Fleet]:
    """For properties, whose fixtures must outlive an example."""
    return Fleet


@pytest.fixture(scope="module")
def fixed_plan() -> RolloutPlan:
    return _plan()

"""Rollouts as the API takes and shows them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from fleet_server.api_names import CohortName, ModelName, Version

TimeMs = Annotated[int, Field(examples=[1_795_000_000_000])]
RolloutId = Annotated[str, Field(max_length=64, examples=["9f2c41d07ab3"])]

PLAN_EXAMPLE = {
    "name": "careful",
    "report_every_ms": 60_000,
    "device_soak_ms": 60_000,
    "alpha": 0.05,
    "looks": 4,
    "stages": [
        {
            "name": "canary-5",
            "kind": "canary",
            "percent": 5,
            "soak_ms": 3_600_000,
            "minimum_devices": 3,
            "minimum_predictions": 1000,
            "deadline_ms": 86_400_000,
        },
        {"name": "full", "kind": "full", "percent": 95, "soak_ms": 3_600_000},
    ],
    "guardrails": {"drift_margin": 0.1, "error_rate_limit": 0.02},
}


class Body(BaseModel):
    """A request's body: unknown fields are refused, so that a typing error is not silent."""

    model_config = ConfigDict(extra="forbid")


class PlanBody(Body):
    """Asks what a plan would do: a template's name, or a plan of one's own."""

    cohort: CohortName
    model: ModelName
    template: Annotated[str, Field(max_length=40, examples=["careful"])] = "careful"
    plan: Annotated[dict[str, Any] | None, Field(examples=[PLAN_EXAMPLE])] = None


class RolloutBody(PlanBody):
    """Creates a rollout; it is a draft until it is started."""

    version: Version
    start: Annotated[bool, Field(description="Start it at once.")] = False


class RollbackBody(Body):
    """Says why a rollout is rolled back; for the audit."""

    reason: Annotated[str, Field(max_length=300, examples=["customers complain"])] = ""


class RolloutBrief(BaseModel):
    """A rollout in a list. ``held`` says that the controller paused it: inconclusive."""

    model_config = ConfigDict(from_attributes=True)

    id: RolloutId
    cohort: Annotated[str, Field(examples=["lab"])]
    model: Annotated[str, Field(examples=["detector"])]
    version: Annotated[str, Field(examples=["1.1.0"])]
    state: Annotated[str, Field(examples=["running"])]
    held: bool
    stage: Annotated[str, Field(examples=["canary-5"])]
    created_ms: TimeMs
    started_ms: TimeMs
    ended_ms: int
    reason: str


class StageShown(BaseModel):
    """A stage; times are 0 before they happen."""

    model_config = ConfigDict(from_attributes=True)

    name: Annotated[str, Field(examples=["canary-5"])]
    kind: Annotated[str, Field(examples=["canary"])]
    percent: Annotated[float, Field(examples=[5.0])]
    state: Annotated[str, Field(examples=["soaking"])]
    devices: Annotated[int, Field(examples=[3])]
    began_ms: TimeMs
    soaking_since_ms: TimeMs
    soak_ms: Annotated[int, Field(examples=[3_600_000])]
    ended_ms: int
    deadline_at_ms: TimeMs
    looks_done: int


class RollbackShown(BaseModel):
    """From the decision to the last device; ``last_changed_ms`` is that device's own time."""

    model_config = ConfigDict(from_attributes=True)

    decided_ms: TimeMs
    epoch: int
    confirmed: int
    members: int
    last_changed_ms: TimeMs
    last_seen_ms: TimeMs
    laggards: list[str]


class RolloutShown(BaseModel):
    """Everything about a rollout: stages, exposure, gates and the evidence of its decisions."""

    model_config = ConfigDict(from_attributes=True)

    now_ms: TimeMs
    brief: RolloutBrief
    stable_version: Annotated[str, Field(examples=["1.0.0"])]
    candidate: str
    stable: str
    plan: dict[str, Any]
    stages: list[StageShown]
    exposure: Annotated[
        dict[str, Any], Field(examples=[{"members": 60, "running": {"stable": 57, "candidate": 3}}])
    ]
    gates: list[dict[str, Any]]
    explanation: str
    rollback: RollbackShown | None
    evidence: list[dict[str, Any]]


class Explanation(BaseModel):
    """Why a rollout stands where it does."""

    id: RolloutId
    explanation: str


class PlanShown(BaseModel):
    """A plan with its arms in devices, and how the error probability is spent."""

    plan: dict[str, Any]
    first_release: Annotated[bool, Field(examples=[False])]
    eligible: Annotated[int, Field(examples=[60])]
    arms: list[dict[str, Any]]
    ledger: list[dict[str, Any]]


class CohortReleaseShown(BaseModel):
    """What a cohort runs of a model."""

    model_config = ConfigDict(from_attributes=True)

    cohort: Annotated[str, Field(examples=["lab"])]
    model: Annotated[str, Field(examples=["detector"])]
    version: Annotated[str, Field(examples=["1.1.0"])]
    release: str
    previous: str
    rollout: str
    epoch: int


class ComplianceReport(BaseModel):
    """A release's history; ``not_known`` names what the system cannot vouch for."""

    model_config = ConfigDict(from_attributes=True)

    model: Annotated[str, Field(examples=["detector"])]
    version: Annotated[str, Field(examples=["1.1.0"])]
    state: Annotated[str, Field(examples=["staged"])]
    stage: Annotated[str, Field(examples=["production"])]
    provenance: dict[str, Any]
    staging_gates: list[dict[str, Any]]
    rollouts: list[dict[str, Any]]
    approvals: list[dict[str, Any]]
    skipped_safeguards: Annotated[list[str], Field(examples=[["approval"]])]
    rollbacks: list[dict[str, Any]]
    audit: list[dict[str, Any]]
    not_known: list[str]

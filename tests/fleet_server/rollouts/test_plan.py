"""Guards plans: what cannot be carried out is refused, and alpha is spent once."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from fleet_server.errors import Invalid
from fleet_server.rollouts import plan as plans
from fleet_server.rollouts.plan import TEMPLATES, Guardrail, RolloutPlan, Stage, StageKind


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("first", [False, True])
def test_ledger_spends_more_than_alpha(name: str, first: bool) -> None:
    plan = plans.template(name)
    rows = plans.ledger(plan, first=first)
    assert sum(row.alpha for row in rows) == pytest.approx(plan.alpha)
    looked = [row for row in rows if row.guardrail is not Guardrail.FAILURE_OR_SILENCE]
    assert {row.look for row in looked} == set(range(1, plan.looks + 1))


def test_ledger_judges_drift_without_control(plan: RolloutPlan) -> None:
    full = [row.guardrail for row in plans.ledger(plan) if row.stage == "full"]
    assert set(full) == {Guardrail.FAILURE_OR_SILENCE, Guardrail.ERROR_RATE}


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_does_not_survive_storage(name: str) -> None:
    plan = plans.template(name)
    assert plans.read(msgspec.json.decode(msgspec.json.encode(plan))) == plan


FULL = Stage(name="full", kind=StageKind.FULL, percent=100.0, soak_ms=1)
CANARY = Stage(name="canary", kind=StageKind.CANARY, percent=10.0, soak_ms=1)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ((), "at least one stage"),
        ((CANARY,), "exactly one full stage"),
        ((FULL, CANARY), "out of order"),
        ((CANARY, CANARY, FULL), "same name"),
        ((replace(CANARY, name="UP"), FULL), "not allowed"),
        ((replace(CANARY, percent=50.0), replace(CANARY, name="b", percent=20.0), FULL), "smaller"),
        ((replace(CANARY, deadline_ms=5, soak_ms=5), FULL), "soaks longer"),
        (tuple(replace(CANARY, name=f"c{i}") for i in range(20)), "at most 16"),
    ],
)
def test_plan_that_cannot_be_carried_out(stages: tuple[Stage, ...], words: str) -> None:
    with pytest.raises(Invalid, match=words) as caught:
        plans.check(RolloutPlan(name="odd", stages=stages))
    assert caught.value.advice


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"name": "x"},
        {"name": "x", "stages": [{"name": "full", "kind": "everything"}]},
        {"name": "x", "stages": [{"name": "f", "kind": "full", "percent": 101, "soak_ms": 1}]},
        {"name": "x", "stages": [{"name": "f", "kind": "full", "percent": 1, "soak_ms": -1}]},
        {"name": "x", "alpha": 7, "stages": []},
    ],
)
def test_plan_from_outside_raises_a_stray_error(value: object) -> None:
    with pytest.raises(Invalid):
        plans.read(value)


def test_first_release_of_a_cohort_gets_a_canary_without_control() -> None:
    plan = plans.first_release(plans.template("careful"))
    assert [(stage.kind, stage.percent) for stage in plan.stages] == [(StageKind.FULL, 100.0)]


@pytest.mark.parametrize("name", ["", "Careful", "../careful", "careful\n", "a" * 40])
def test_plan_with_a_name_that_is_none(name: str) -> None:
    with pytest.raises(Invalid) as caught:
        plans.check(replace(plans.template("careful"), name=name))
    assert caught.value.code == "bad_plan"


def test_unknown_template() -> None:
    with pytest.raises(Invalid, match="no plan"):
        plans.template("reckless")

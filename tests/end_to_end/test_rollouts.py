"""A good release reaches everybody and a bad one is taken back, whatever carries the fleet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator.digits import TrainedModel
from tests.end_to_end.town import (
    BAD,
    CANARY,
    DEVICES,
    FIRST,
    FULL,
    GOOD,
    Town,
    goes_on_predicting,
    plan,
    stage,
    wait_for_versions,
)

pytestmark = pytest.mark.slow


@pytest.fixture(
    params=[
        "embedded-sqlite",
        pytest.param("mosquitto-sqlite", marks=pytest.mark.broker),
        pytest.param("embedded-postgres", marks=pytest.mark.postgres),
    ]
)
def any_town(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    free_port: int,
    models: dict[str, TrainedModel],
    images: Path,
) -> Iterator[Town]:
    broker, database = request.param.split("-")
    if broker == "mosquitto":
        request.getfixturevalue("require_mosquitto")
    url = request.getfixturevalue("postgres_url") if database == "postgres" else ""
    town = Town(tmp_path, port=free_port, images=images, broker=broker, database_url=url)
    try:
        town.start()
        town.push(models.values())
        yield town
    finally:
        town.close()


def test_bad_release_stays_or_a_good_one_does_not_arrive(any_town: Town) -> None:
    town = any_town
    town.make_cohort("lab")
    with town.fleet("lab") as fleet:
        assert town.roll_out("lab", FIRST)["brief"]["state"] == "completed"
        wanted = plan(stage("shadow", "shadow", 50), CANARY, FULL)
        good = town.roll_out("lab", GOOD, wanted)
        assert good["brief"]["state"] == "completed", good["explanation"]
        assert [item["state"] for item in good["stages"]] == ["passed"] * 3
        wait_for_versions(town, fleet, {GOOD: DEVICES})

        bad = town.roll_out("lab", BAD, plan(CANARY, FULL))
        assert bad["brief"]["state"] == "rolled_back", bad["explanation"]
        assert [item["state"] for item in bad["stages"]] == ["failed", "pending"]
        assert bad["rollback"]["confirmed"] == DEVICES
        assert bad["rollback"]["laggards"] == []
        _has_evidence(bad)
        wait_for_versions(town, fleet, {GOOD: DEVICES})
        goes_on_predicting(fleet)


def _has_evidence(bad: dict) -> None:
    (decided,) = [entry for entry in bad["evidence"] if entry["kind"] == "roll_back"]
    gates = {gate["guardrail"]: gate for gate in decided["decision"]["gates"]}
    drift = gates["output_drift"]
    assert drift["verdict"] == "fail"
    assert min(drift["n_candidate"], drift["n_control"]) >= CANARY["minimum_devices"]
    assert drift["evidence"] <= drift["alpha"]
    assert drift["statistic"] > drift["bound"]
    figures = drift["figures"]
    for name in ("distribution_candidate", "distribution_control"):
        assert sum(figures[name]) == pytest.approx(1, abs=1e-3)
    assert {gate["verdict"] for name, gate in gates.items() if name != "output_drift"} <= {
        "pass",
        "inconclusive",
    }

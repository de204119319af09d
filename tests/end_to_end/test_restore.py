"""The server is lost, and an older backup takes its place: the fleet obeys again, untouched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from simulator.digits import TrainedModel
from tests.end_to_end.town import (
    FIRST,
    GOOD,
    Town,
    goes_on_predicting,
    running,
    wait_for_versions,
    wait_until,
)

pytestmark = pytest.mark.slow

FLEET = 5
LATE = 1


@pytest.fixture
def lone_town(tmp_path: Path, free_port: int, images: Path) -> Iterator[Town]:
    """A server of this test alone, without releases."""
    made = Town(tmp_path, port=free_port, images=images, broker="embedded")
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_fleet_obeys_a_restored_older_server(
    lone_town: Town, models: dict[str, TrainedModel]
) -> None:
    town = lone_town
    backup = town.folder / "backup.tar"
    town.push([models[FIRST]])
    town.make_cohort("lab")
    with town.fleet("lab", devices=FLEET) as fleet:
        assert town.roll_out("lab", FIRST)["brief"]["state"] == "completed"
        wait_for_versions(town, fleet, {FIRST: FLEET})
        # Calls before the first model came; from now on there has to be one.
        before = fleet.status().without_model
        made = town.edgefleet("backup", str(backup), "--json").json
        assert made["description"]["fleet"] == "home"

        # What the backup does not know: a family, a release, a rollout, a device.
        town.push([models[FIRST]], name="another-family")
        town.push([models[GOOD]])
        assert town.roll_out("lab", GOOD)["brief"]["state"] == "completed"
        wait_for_versions(town, fleet, {GOOD: FLEET})
        with town.fleet("lab", devices=LATE, prefix="late") as late:
            wait_for_versions(town, late, {GOOD: LATE})
            newer = town.ask("GET", "/v1/trust/after-restore")

            town.lose_and_restore(backup)
            probe = town.http.get("/ready")
            assert probe.status_code == 503
            assert probe.json()["checks"]["after_restore"] is False
            # Nothing is published before the devices were asked.
            assert running(town, fleet) == {GOOD: FLEET}

            def heard() -> bool:
                shown = town.ask("GET", "/v1/trust/after-restore")
                return shown["reported"] == FLEET and len(shown["strangers"]) == LATE

            wait_until(heard, "the devices to tell what they have seen")
            shown = town.ask("GET", "/v1/trust/after-restore")
            assert shown["seen"]["epoch"] >= newer["seen"]["epoch"]
            assert shown["seen"]["snapshot"] > shown["held"]["snapshot"]
            assert len(shown["unknown_releases"]) == FLEET
            done = town.edgefleet("trust", "after-restore", "--adopt", "--json").json
            assert done["unsigned"] == []
            assert done["adopted"] == ["late-0001"]
            wait_until(lambda: town.http.get("/ready").status_code == 200, "the server to lead")

            # They obey: back to what this server knows, and on to what it is given anew.
            wait_for_versions(town, fleet, {FIRST: FLEET})
            wait_for_versions(town, late, {GOOD: LATE})
            town.push([models[GOOD]])
            assert town.roll_out("lab", GOOD)["brief"]["state"] == "completed"
            wait_for_versions(town, fleet, {GOOD: FLEET})
            for devices in (fleet, late):
                goes_on_predicting(devices)
            audit = town.ask("GET", "/v1/audit")["entries"]
            assert "trust.after-restore" in [entry["action"] for entry in audit]
            # Somebody who comes late changes nothing for the others.
            again = town.edgefleet("trust", "after-restore", "--wait", "0", "--json").json
            assert again["generation"] > done["generation"]
            assert town.roll_out("lab", FIRST)["brief"]["state"] == "completed"
            wait_for_versions(town, fleet, {FIRST: FLEET})
            goes_on_predicting(fleet)
            assert fleet.status().without_model == before

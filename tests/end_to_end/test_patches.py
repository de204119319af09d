"""Devices that hold a release get the next one by a patch, through the doors that they use."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from simulator import digits
from simulator.digits import TrainedModel
from tests.end_to_end.town import (
    DEVICES,
    FIRST,
    Town,
    goes_on_predicting,
    wait_for_versions,
    wait_until,
)

pytestmark = pytest.mark.slow

NEXT = "1.0.1"


@pytest.fixture
def busy_town(
    tmp_path: Path, free_port: int, images: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Town]:
    """A server that looks for missing patches all the time."""
    monkeypatch.setenv("EDGEFLEET_DELTA_INTERVAL_MS", "100")
    town = Town(tmp_path, port=free_port, images=images, broker="embedded")
    try:
        town.start()
        yield town
    finally:
        town.close()


def fine_tuned(model: TrainedModel) -> TrainedModel:
    """The next release, whose weights differ by a hundredth of what they vary."""
    made = onnx.load_from_string(model.model)
    rng = np.random.default_rng(8)
    for tensor in made.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim > 1:
            noise = rng.normal(0, 0.01 * float(values.std()), values.shape)
            moved = (values + noise).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    return dataclasses.replace(model, version=NEXT, model=made.SerializeToString())


def test_whole_files_are_downloaded_although_patches_are_there(
    busy_town: Town, models: dict[str, TrainedModel]
) -> None:
    town = busy_town
    town.make_cohort("lab")
    town.push([models[FIRST], fine_tuned(models[FIRST])])
    path = f"/v1/models/{digits.MODEL}/releases/{NEXT}/deltas"
    wait_until(
        lambda: [item["state"] for item in town.ask("GET", path)["deltas"]] == ["made"],
        "the patch",
    )
    assert "patch      from 1.0.0: made" in town.edgefleet("model", "show", digits.MODEL, NEXT).out
    with town.fleet("lab") as fleet:
        assert town.roll_out("lab", FIRST)["brief"]["state"] == "completed"
        wait_for_versions(town, fleet, {FIRST: DEVICES})
        assert metric(town, "edgefleet_deltas_served") == 0
        assert town.roll_out("lab", NEXT)["brief"]["state"] == "completed"
        wait_for_versions(town, fleet, {NEXT: DEVICES})
        goes_on_predicting(fleet)
    assert metric(town, "edgefleet_deltas_served") >= DEVICES
    [patch] = town.ask("GET", path)["deltas"]
    saved = DEVICES * (patch["new_bytes"] - patch["patch_bytes"])
    assert metric(town, "edgefleet_deltas_saved_bytes") >= saved > 0


def metric(town: Town, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", town.http.get("/metrics").text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])

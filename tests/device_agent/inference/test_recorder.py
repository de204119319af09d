"""A window holds every call once, costs the caller little, and never a prediction."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np
import pytest

from device_agent.inference import recorder as module
from device_agent.inference.recorder import BATCH_CALLS, LARGE_BYTES, Recorder
from fleet_contract import codec, limits
from fleet_contract.features import FeatureSchema, FeatureSet, NumericFeature, Reduction, Source
from fleet_contract.messages.report import (
    Pairs,
    Report,
    Role,
    Window,
    check_sketches,
    read_report,
)
from fleet_contract.sketches.features import FeatureBank

RELEASE = "ab" * 32


def make(workshop: Any, role: Role = Role.ACTIVE) -> Recorder:
    return Recorder(workshop.schema, RELEASE, role, now_ms=1_000)


def calls(count: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    rng = np.random.default_rng(5)
    return [
        (
            {"x": rng.normal(size=(rows, 4)).astype(np.float32)},
            {"y": rng.normal(size=(rows, 3)).astype(np.float32)},
        )
        for rows in rng.integers(1, 5, count)
    ]


@pytest.mark.parametrize("count", [1, BATCH_CALLS - 1, BATCH_CALLS, 3 * BATCH_CALLS + 5])
def test_sketches_are_those_of_every_row(workshop: Any, count: int) -> None:
    recorder = make(workshop)
    made = calls(count)
    for inputs, outputs in made:
        recorder.succeeded(inputs, outputs, 100)
    window = recorder.roll(61_000)
    inputs_bank, outputs_bank = (
        FeatureBank(workshop.schema.inputs),
        FeatureBank(workshop.schema.outputs),
    )
    for inputs, outputs in made:
        inputs_bank.update(inputs)
        outputs_bank.update(outputs)
    assert window.inputs == inputs_bank.sketches()
    assert window.outputs == outputs_bank.sketches()
    assert (window.predictions, window.errors, window.latency.count) == (count, 0, count)
    assert (window.start_ms, window.length_ms, window.closed) == (1_000, 60_000, True)
    check_sketches(window, workshop.schema)


def test_snapshots_are_cumulative_with_a_growing_sequence(workshop: Any) -> None:
    recorder = make(workshop)
    windows: list[Window] = []
    for number, (inputs, outputs) in enumerate(calls(5)):
        recorder.succeeded(inputs, outputs, 100)
        recorder.failed()
        windows.append(recorder.snapshot(2_000 + number))
    windows.append(recorder.roll(9_000))
    assert [window.sequence for window in windows] == [0, 1, 2, 3, 4, 5]
    assert [window.predictions for window in windows] == [2, 4, 6, 8, 10, 10]
    assert [window.errors for window in windows] == [1, 2, 3, 4, 5, 5]
    assert {window.start_ms for window in windows} == {1_000}
    later = recorder.snapshot(9_500)
    assert (later.start_ms, later.sequence, later.predictions) == (9_000, 0, 0)
    assert later.inputs is None and later.outputs is None


def test_window_ended_by_a_clock_that_stands_still_has_a_start_of_its_own(workshop: Any) -> None:
    recorder = make(workshop)
    starts = [recorder.roll(1_000).start_ms for _ in range(3)]
    assert len(set(starts)) == 3


def test_caller_reuses_its_buffer(workshop: Any) -> None:
    recorder = make(workshop)
    buffer, scores = np.ones((1, 4), np.float32), np.zeros((1, 3), np.float32)
    for _ in range(10):
        recorder.succeeded({"x": buffer}, {"y": scores}, 1)
    buffer[:] = np.nan
    scores[:] = np.nan
    window = recorder.roll(2_000)
    assert window.inputs is not None and window.outputs is not None
    assert window.inputs.numeric[0].nans == 0
    assert window.outputs.numeric[0].nans == 0


def test_large_arrays_are_sampled_evenly_and_reduced_at_once() -> None:
    image = Source("image", Reduction.MEAN)
    edges = [float(edge) for edge in range(31)]
    schema = FeatureSchema(FeatureSet([NumericFeature("mean", image, 16, edges)]), FeatureSet())
    recorder = Recorder(schema, RELEASE, Role.ACTIVE, now_ms=0)
    array = np.zeros((1, LARGE_BYTES // 4), np.float32)
    cameras = 4
    for number in range(400):
        array[:] = number % cameras
        recorder.succeeded({"image": array}, {}, 1)
    array[:] = 30
    window = recorder.roll(1)
    assert window.predictions == 400 and window.inputs is not None
    (sketch,) = window.inputs.numeric
    assert 80 <= sketch.rows <= 120
    # Each of four cameras that take turns is seen about as often.
    assert all(sketch.bins[1 + camera] >= 15 for camera in range(cameras))


def test_outputs_that_the_schema_cannot_read_cost_the_sketch_and_nothing_else(
    workshop: Any,
) -> None:
    recorder = make(workshop)
    inputs, _ = calls(1)[0]
    recorder.succeeded(inputs, {"other": np.zeros(3)}, 1)
    window = recorder.roll(2_000)
    assert window.predictions == 1 and window.errors == 0
    assert window.outputs is None
    assert window.inputs is not None
    recorder.succeeded(*calls(1)[0], 1)
    assert recorder.roll(3_000).outputs is not None


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, np.float32(3.4e38)])
def test_odd_numbers_raise_no_warning_that_an_application_could_trip_over(
    workshop: Any, value: float
) -> None:
    recorder = make(workshop)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(BATCH_CALLS + 1):
            recorder.succeeded(
                {"x": np.full((2, 4), value, np.float32)},
                {"y": np.full((2, 3), value, np.float32)},
                1,
            )
        window = recorder.roll(2_000)
    assert window.inputs is not None
    assert window.inputs.numeric[0].rows == 2 * (BATCH_CALLS + 1)


def test_more_calls_than_a_window_may_hold(workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROWS_PER_WINDOW", 10)
    recorder = make(workshop)
    for inputs, outputs in calls(15):
        recorder.succeeded({"x": inputs["x"][:1]}, {"y": outputs["y"][:1]}, 1)
        recorder.failed()
    window = recorder.roll(2_000)
    assert (window.predictions, window.latency.count) == (10, 5)
    check_sketches(window, workshop.schema)


def test_two_threads_and_a_reporter_lose_and_double_nothing(
    workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_CALLS", 4)
    recorder = make(workshop)
    made = calls(300)
    windows: list[Window] = []

    def work() -> None:
        for inputs, outputs in made:
            recorder.succeeded(inputs, outputs, 50)
            recorder.failed()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    now_ms = 2_000
    while any(thread.is_alive() for thread in threads):
        windows.append(recorder.roll(now_ms))
        now_ms += 1
    for thread in threads:
        thread.join()
    windows.append(recorder.roll(now_ms))
    assert sum(window.predictions for window in windows) == 1_200
    assert sum(window.errors for window in windows) == 600
    rows = 2 * sum(len(inputs["x"]) for inputs, _ in made)
    seen = [window.inputs for window in windows if window.inputs is not None]
    assert sum(sketch.numeric[0].rows for sketch in seen) == rows
    for window in windows:
        assert window.latency.count == window.predictions - window.errors
    figures = recorder.figures()
    assert (figures.predictions, figures.errors) == (1_200, 600)


def test_shadow_window_goes_through_the_wire(workshop: Any) -> None:
    recorder = make(workshop, Role.SHADOW)
    for inputs, outputs in calls(3):
        recorder.succeeded(inputs, outputs, 70, pairs=Pairs(2, 1, 2))
    window = recorder.roll(5_000)
    assert window.pairs == Pairs(6, 3, 6)
    assert window.inputs is None and window.outputs is not None
    report = Report(session="0" * 16, windows=[window])
    assert read_report(codec.encode_msgpack(report)).windows == [window]

"""Guards from figures of a device that is not the target, and from one that does all the work."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_contract.manifest import Capabilities, Runtime
from fleet_server.benches.choosing import Seat, choose
from fleet_server.releases.timing import Target

ONNX = {Runtime.ONNXRUNTIME}


def seat(device: str, *, used_ms: int = 0, machine: str = "aarch64", **labels: str) -> Seat:
    capabilities = Capabilities({"onnxruntime": "1"}, machine, 21, 10, 1)
    return Seat(device, labels, capabilities, used_ms)


PI, OTHER_PI = seat("pi-1", used_ms=9, hardware="pi4"), seat("pi-2", used_ms=5, hardware="pi4")
NANO = seat("nano-1", machine="x86_64", hardware="nano")
BARE = seat("bare-1")


@pytest.mark.parametrize(
    ("target", "seats", "device"),
    [
        (Target(labels={"hardware": "pi4"}), [PI, NANO], "pi-1"),
        (Target(labels={"hardware": "pi4"}), [PI, OTHER_PI, NANO], "pi-2"),
        (Target(machines=["x86_64"]), [PI, NANO], "nano-1"),
        (Target(machines=["x86_64"], named={"hardware": "pi4"}), [PI, NANO], "nano-1"),
        (Target(named={"hardware": "nano"}), [PI, NANO], "nano-1"),
        (Target(), [PI, OTHER_PI], "pi-2"),
        (Target(device="pi-1"), [PI, OTHER_PI], "pi-1"),
        (Target(device="pi-1"), [PI, NANO], "pi-1"),
        (Target(device="gone", named={"hardware": "pi4"}), [PI, NANO], "pi-1"),
        (Target(named={"site": "lab"}), [seat("bare-2", site="lab"), PI], "bare-2"),
    ],
)
def test_device_of_the_target_is_chosen(target: Target, seats: list[Seat], device: str) -> None:
    found = choose(seats, target, ONNX)
    assert (found.device, found.why) == (device, "")
    labels = {item.device: item.labels for item in seats}[device]
    assert found.hardware == labels.get("hardware", "")


@pytest.mark.parametrize(
    ("target", "seats", "why"),
    [
        (Target(), [], ""),
        (Target(named={"hardware": "pi4"}), [], "no bench device is there"),
        (Target(labels={"hardware": "tpu"}), [PI], "has hardware=tpu"),
        (Target(named={"hardware": "tpu"}), [PI], "has hardware=tpu"),
        (Target(machines=["riscv64"]), [PI], "machines riscv64"),
        (Target(), [PI, NANO], "several kinds (nano, pi4)"),
        (Target(), [PI, BARE], "several kinds (none, pi4)"),
        (Target(), [BARE], "no hardware label"),
    ],
)
def test_no_device_is_better_than_another_one(target: Target, seats: list[Seat], why: str) -> None:
    found = choose(seats, target, ONNX)
    assert found.device == ""
    assert why in found.why
    assert bool(why) == bool(found.why)


def test_device_without_the_runtime(request: Any) -> None:
    found = choose([PI], Target(), {Runtime.LITERT, Runtime.ONNXRUNTIME})
    assert "runs litert and onnxruntime" in found.why

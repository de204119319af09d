"""Bench devices as the API shows them."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from fleet_server.benches.service import BenchView

_EXAMPLE: dict[str, Any] = {
    "device": "bench-pi4",
    "labels": {"hardware": "pi4"},
    "machine": "aarch64",
    "runtimes": {"onnxruntime": "1.31.1"},
    "there": True,
    "polled_ms": 1_795_000_000_000,
    "used_ms": 1_794_999_000_000,
    "jobs_done": 3,
}


class BenchOut(BaseModel):
    """A device that times candidates. ``there``: it asked for a job within the last minute;
    ``used_ms`` is when it was last given one, 0 for never.
    """

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    device: str
    labels: dict[str, str]
    machine: str
    runtimes: dict[str, str]
    there: bool
    polled_ms: int
    used_ms: int
    jobs_done: int


class BenchList(BaseModel):
    """All bench devices, in order of their names."""

    benches: list[BenchOut]


def show(view: BenchView) -> BenchOut:
    """Return a bench device as the API shows it."""
    return BenchOut(
        device=view.device,
        labels=dict(view.labels),
        machine=view.capabilities.machine,
        runtimes=view.capabilities.runtimes,
        there=view.there,
        polled_ms=view.polled_ms,
        used_ms=view.used_ms,
        jobs_done=view.jobs_done,
    )

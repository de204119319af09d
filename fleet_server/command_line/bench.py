"""``edgefleet bench``: the devices that time candidates."""

from typing import Any

import typer

from fleet_server.clock import SystemClock
from fleet_server.command_line.connection import connect
from fleet_server.command_line.output import AsJson, print_table, show

app = typer.Typer(no_args_is_help=True, help="Devices that time candidates while they are staged.")


@app.callback()
def bench() -> None:
    """Devices that time candidates while they are staged."""


@app.command("list")
def list_benches(context: typer.Context, as_json: AsJson = False) -> None:
    """List the bench devices: a device becomes one by device-agent bench."""
    found = connect(context).get("/v1/benches")
    now_ms = SystemClock().now_ms()
    show(
        found,
        as_json,
        lambda: print_table(
            ("DEVICE", "LABELS", "MACHINE", "RUNTIMES", "LAST SEEN", "JOBS"),
            (_row(item, now_ms) for item in found["benches"]),
            empty="There are no bench devices; docs/guides/bench-devices.md says how to get one.",
        ),
    )


def _row(item: dict[str, Any], now_ms: int) -> tuple[object, ...]:
    labels = " ".join(f"{key}={value}" for key, value in sorted(item["labels"].items()))
    seen = "there" if item["there"] else f"{(now_ms - item['polled_ms']) / 60_000:.0f} min ago"
    return (
        item["device"],
        labels,
        item["machine"],
        " ".join(sorted(item["runtimes"])),
        seen,
        item["jobs_done"],
    )

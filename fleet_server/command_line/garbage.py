"""``edgefleet model gc``: what of the store nobody needs, and to take it out."""

from typing import Annotated, Any

import typer

from fleet_server.clock import SystemClock
from fleet_server.command_line.connection import connect
from fleet_server.command_line.output import AsJson, mib, print_table, say, show


def collect_garbage(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what there is; mark and remove nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove files of the store that no release, rollout or device may need.

    The server does the same now and then by itself. A file is marked first, and goes at a look
    after its grace (a day); so the first call removes nothing.
    """
    connection = connect(context)
    found = connection.get("/v1/garbage") if dry_run else connection.post("/v1/garbage")
    show(found, as_json, lambda: _describe(found))


def _describe(found: Any) -> None:
    now_ms = SystemClock().now_ms()
    rows = [(item, "removed") for item in found["removed"]]
    rows += [(item, _due(item["due_ms"] - now_ms)) for item in found["garbage"]]
    print_table(
        ("FILE", "BYTES", "GOES"),
        ((item["path"], item["size_bytes"], when) for item, when in rows),
        empty="Nothing can go: everything in the store may be needed.",
    )
    say(
        f"kept {found['kept_files']} files ({mib(found['kept_bytes'])} MiB), "
        f"marked {found['garbage_files']} ({mib(found['garbage_bytes'])} MiB), "
        f"removed {found['removed_files']} ({mib(found['removed_bytes'])} MiB)"
    )


def _due(left_ms: int) -> str:
    return "at the next look" if left_ms <= 0 else f"in {left_ms / 3_600_000:.1f} h or later"

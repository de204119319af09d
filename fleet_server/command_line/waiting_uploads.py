"""``edgefleet model uploads``: files of yours that arrived and no release was made of."""

from typing import Annotated, Any

import typer

from fleet_server.clock import SystemClock
from fleet_server.command_line.connection import connect
from fleet_server.command_line.output import AsJson, CommandError, mib, print_table, say, show

ALL = "all"


def list_uploads(
    context: typer.Context,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Drop this one, or all. May be given several times."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show your uploads that no release was made of, and drop them.

    They wait for the push that goes on with them, and go by themselves a day after their last byte.
    """
    connection = connect(context)
    found: list[dict[str, Any]] = connection.get("/v1/uploads")["uploads"]
    wanted = set(drop or [])
    unknown = wanted - {item["id"] for item in found} - {ALL}
    if unknown:
        raise CommandError(
            f"You have no upload {', '.join(sorted(unknown))}; nothing was dropped.",
            "edgefleet model uploads shows the ids of yours.",
        )
    dropped = [item for item in found if ALL in wanted or item["id"] in wanted]
    for item in dropped:
        connection.delete(f"/v1/uploads/{item['id']}")
    left = [item for item in found if item not in dropped]

    def describe() -> None:
        if dropped:
            say(f"Dropped {len(dropped)} of {len(found)}.")
        now_ms = SystemClock().now_ms()
        print_table(
            ("ID", "FILE", "ARRIVED MiB", "OF MiB", "STATE", "GOES IN"),
            (
                (
                    item["id"],
                    item["field"],
                    mib(item["offset_bytes"]),
                    mib(item["size_bytes"]),
                    "whole" if item["complete"] else "unfinished",
                    f"{max(0, item['expires_ms'] - now_ms) / 3_600_000:.1f} h",
                )
                for item in left
            ),
            empty="You have no uploads that wait for a release.",
        )

    show({"dropped": dropped, "uploads": left}, as_json, describe)

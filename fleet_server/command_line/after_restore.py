"""``edgefleet trust after-restore``: a restored server goes on above what its devices have seen."""

import time
from typing import Annotated, Any

import typer

from fleet_server.clock import SystemClock
from fleet_server.command_line.connection import Connection, connect
from fleet_server.command_line.output import AsJson, ago, print_table, say, show

PATH = "/v1/trust/after-restore"
LOOK_EVERY_MS = 500


def after_restore(
    context: typer.Context,
    wait: Annotated[
        int,
        typer.Option(
            metavar="SECONDS", min=0, max=86_400, help="How long to wait until every device spoke."
        ),
    ] = 60,
    adopt: Annotated[
        bool,
        typer.Option("--adopt", help="Take devices back that enrolled after the backup was made."),
    ] = False,
    accept_floors: Annotated[
        bool,
        typer.Option("--accept-floors", help="Believe devices which releases were revoked."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Go on above what devices have seen, after a restore.

    Waits for the devices to say what they hold, raises generation, epochs and metadata versions
    above it, and signs everything anew. Then the server leads its fleet again. Run it again when
    devices come that were away.
    """
    connection = connect(context)
    _wait(connection, SystemClock(), wait, as_json)
    done = connection.post(PATH, {"adopt": adopt, "accept_floors": accept_floors})
    show(done, as_json, lambda: _tell(done))


def _wait(connection: Connection, clock: SystemClock, wait_s: int, as_json: bool) -> None:
    until_ms = clock.monotonic_ms() + wait_s * 1_000
    said = -1
    while True:
        shown = connection.get(PATH)
        if shown["reported"] != said and not as_json:
            said = shown["reported"]
            say(f"{said} of {shown['known']} devices have said what they hold.")
        left_ms = until_ms - clock.monotonic_ms()
        if shown["reported"] >= shown["known"] or left_ms <= 0:
            return
        time.sleep(min(LOOK_EVERY_MS, left_ms) / 1_000)


def _tell(done: dict[str, Any]) -> None:
    before = done["before"]
    say(f"Generation {done['generation']}; {done['documents']} control documents were signed anew.")
    silent = before["known"] - before["reported"]
    if silent:
        names = ", ".join(before["silent"][:10])
        say(f"{silent} devices have not spoken yet ({names}).")
        say("When they are back, run this again: they may have seen more.")
    for name in before["implausible"]:
        say(f"{name} claims to have seen what cannot be; it was not believed. Look at that device.")
    if done["unsigned"]:
        say(
            f"Signatures of keys that are elsewhere are missing for: {', '.join(done['unsigned'])}."
        )
        say("Until they are there devices may refuse the metadata: edgefleet trust sign --keys DIR")
    if not done["complete"] and before["restored_ms"] is None:
        say("Until somebody signs, the keyset stays as it was, and the server leads as before.")
    elif not done["complete"]:
        say("The server does not lead its fleet yet. Sign; then run this again.")
    _tell_of_strangers(done, before["strangers"])
    if before["unknown_releases"]:
        print_table(
            ("DEVICE", "MODEL", "RELEASE THAT IS NOT KNOWN HERE"),
            (
                (item["device"], item["model"], item["digest"][:12])
                for item in before["unknown_releases"]
            ),
            empty="",
        )
        say(
            "They go back to what this server directs. Push those releases again to return to them."
        )
    say("Done after the backup, and to be done again: revoked tokens, certificates and releases,")
    say("retired devices, a stop, changed labels and cohorts.")
    say("Next: edgefleet rollout list; then make a new backup: edgefleet backup FILE")


def _tell_of_strangers(done: dict[str, Any], strangers: list[dict[str, Any]]) -> None:
    if done["adopted"]:
        say(f"Taken back, without labels: {', '.join(done['adopted'][:20])}.")
        say("Label them: edgefleet device label.")
    elif strangers:
        now_ms = SystemClock().now_ms()
        print_table(
            ("UNKNOWN DEVICE", "AGENT", "LAST HEARD"),
            ((item["name"], item["agent"], ago(item["last_ms"], now_ms)) for item in strangers),
            empty="",
        )
        say("They enrolled after the backup. Take them back by: edgefleet trust after-restore")
        say("--adopt; or enrol them anew.")

"""Waiting for a release to be staged, and what a script is told: the exit codes of a push.

A script acts on the number alone: 3 is the model's matter, 4 may be asked about later, 5 needs
somebody with a key. A server that is restarted meanwhile goes on with the staging, so whoever waits
waits on.
"""

import time
from enum import IntEnum
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console

from fleet_server.clock import SystemClock
from fleet_server.command_line.connection import Connection, may_pass
from fleet_server.command_line.output import CommandError, explain

POLL_S = 0.25
TIMEOUT_S = 3_600
SILENT_S = 120
"""A server that says nothing for so long is not just being restarted."""

Wait = Annotated[bool, typer.Option("--wait", help="Follow the staging to its end.")]
Timeout = Annotated[
    int,
    typer.Option(metavar="SECONDS", help="With --wait: how long; then the exit code is 4.", min=1),
]


class Outcome(IntEnum):
    """Exit codes of ``model push`` and ``model import``; 1 and 2 are those of every command."""

    STAGED = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    TIMED_OUT = 4
    UNSIGNED = 5


_OF_STATE = {
    "staged": Outcome.STAGED,
    "staging": Outcome.TIMED_OUT,
    "unsigned": Outcome.UNSIGNED,
    "refused": Outcome.REFUSED,
}


def outcome(release: Any) -> Outcome:
    """Return the exit code for a release that was waited for."""
    return _OF_STATE.get(release["state"], Outcome.FAILED)


def follow(
    connection: Connection,
    release: Any,
    console: Console,
    timeout_s: float,
    *,
    silent_s: float = SILENT_S,
) -> Any:
    """Ask until staging has ended or the time is over; return the release as it then is.

    Raises:
        CommandError: if the server refuses to say.
    """
    path = f"/v1/models/{quote(release['model'])}/releases/{quote(release['version'])}"
    clock = SystemClock()
    until_ms = clock.monotonic_ms() + round(timeout_s * 1_000)
    heard_ms = clock.monotonic_ms()
    with console.status(_doing(release)) as status:
        while release["state"] == "staging":
            left_s = (until_ms - clock.monotonic_ms()) / 1_000
            if left_s <= 0:
                explain(f"It is still being staged after {timeout_s:g} s; the server goes on.")
                break
            try:
                time.sleep(min(POLL_S, left_s))
                release = connection.get(path)
            except KeyboardInterrupt:
                explain(f"The server goes on with it: {_ask(release)}")
                raise
            except CommandError as error:
                if not may_pass(error):
                    raise
                silent_ms = clock.monotonic_ms() - heard_ms
                if silent_ms > silent_s * 1_000:
                    explain(f"{error.detail} It arrived; ask later: {_ask(release)}")
                    break
                status.update(f"staging: the server is away for {silent_ms // 1_000} s")
            else:
                heard_ms = clock.monotonic_ms()
                status.update(_doing(release))
    return release


def _doing(release: Any) -> str:
    to_do = release["steps_to_do"]
    doing = f" ({release['doing']})" if release.get("doing") else ""
    return f"staging: {to_do[0] if to_do else 'finishing'}{doing}"


def _ask(release: Any) -> str:
    return f"edgefleet model show {release['model']} {release['version']}"

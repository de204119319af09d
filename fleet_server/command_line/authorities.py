"""``edgefleet trust rotate device-ca`` and ``broker``: the authorities that issue certificates.

Mounted beside the keys of the repository (:mod:`fleet_server.command_line.trust`). A planned
rotation has two steps, with time between them; each ends with the next.
"""

from typing import Annotated, Any

import typer

from fleet_server.clock import SystemClock
from fleet_server.command_line.connection import Connection, connect
from fleet_server.command_line.output import AsJson, print_table, say, sentence, show

PATH = "/v1/trust/authorities"
DAY_MS = 86_400_000
NAMES = 10
SIGN = "Next: whoever holds a key of targets, and soon: edgefleet trust sign --keys DIR"
STATUS = "Next: see how devices come over: edgefleet trust status"

Lost = Annotated[bool, typer.Option("--lost", help="The old key is in other hands.")]
Finish = Annotated[
    bool, typer.Option("--finish", help="Believe the new one alone; the last step of a rotation.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def rotate_device_ca(
    context: typer.Context,
    lost: Lost = False,
    finish: Finish = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Issue devices' certificates by another authority.

    Both are believed until --finish. Devices renew in their own time, and at once when the old
    authority is gone.
    """
    connection = connect(context)
    if finish and not yes:
        _ask(connection)
    _step(connection, "device", "device-ca", lost=lost, finish=finish, as_json=as_json)


def rotate_broker(
    context: typer.Context,
    lost: Lost = False,
    finish: Finish = False,
    as_json: AsJson = False,
) -> None:
    """Vouch for server and broker by another authority, and give both another key.

    Also when only their key was stolen. Both authorities are vouched for until --finish.
    """
    connection = connect(context)
    _step(connection, "server", "broker", lost=lost, finish=finish, as_json=as_json)


def tell_authorities(found: dict[str, Any]) -> None:
    """Print how the authorities of certificates stand."""
    now_ms = SystemClock().now_ms()

    def days(at_ms: int) -> str:
        return f"{(at_ms - now_ms) // DAY_MS} d"

    rows = [
        (item["name"], item["standing"], days(item["not_after_ms"]), item["fingerprint"][:12])
        for line in found["lines"]
        for item in line["authorities"]
    ]
    print_table(("AUTHORITY", "STANDING", "EXPIRES IN", "FINGERPRINT"), rows, empty="None.")
    say(f"The certificate of server and broker expires in {days(found['server_expires_ms'])}.")
    for line in found["lines"]:
        if line["overlaps"] or line["behind"]:
            say(f"The authority of {line['line']}s was rotated. {line['next_step']}")
        if line["behind"]:
            say(f"Not renewed yet: {_names(line)}")


def _ask(connection: Connection) -> None:
    found = connection.get(PATH)
    line = next(item for item in found["lines"] if item["line"] == "device")
    if line["behind"]:
        say(f"{line['behind']} devices have not renewed yet: {_names(line)}")
        typer.confirm("They lose their connection until they have. Finish?", abort=True, err=True)


def _step(
    connection: Connection, line: str, word: str, *, lost: bool, finish: bool, as_json: bool
) -> None:
    done = connection.post(PATH, {"line": line, "lost": lost, "finish": finish})

    def tell() -> None:
        say(sentence(f"done: {done['what']}"))
        if done["behind"]:
            say(f"{done['behind']} devices still show a certificate of the old one.")
        if not done["committed"]:
            say("The anchors wait for signatures.")
            say(SIGN)
        elif finish or lost:
            say(STATUS)
        else:
            say(f"Next, when devices have come over: edgefleet trust rotate {word} --finish")
        say("A broker that somebody else runs needs new files: edgefleet broker config")

    show(done, as_json, tell)


def _names(line: dict[str, Any]) -> str:
    more = "" if line["behind"] <= NAMES else f" and {line['behind'] - NAMES} more"
    return ", ".join(line["names"][:NAMES]) + more

"""``edgefleet device``: bring devices in, list them, look at one, label it."""

from typing import Annotated, Any
from urllib.parse import quote

import typer

from fleet_server.clock import SystemClock
from fleet_server.command_line.connection import Connection, connect
from fleet_server.command_line.output import AsJson, CommandError, ago, print_table, say, show

app = typer.Typer(no_args_is_help=True, help="Bring devices in, and look at them.")
LabelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="KEY=VALUE",
        help="A label, for example site=lab; may be given several times.",
    ),
]
Name = Annotated[str, typer.Argument(metavar="DEVICE", help="Its name.")]
PAGE = 1_000
HOUR_MS = 3_600_000


class Versions:
    """Which version a release's digest is; asks the server when it meets a new one."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[str, dict[str, str]] = {}

    def name(self, model: str, digest: str) -> str:
        """Return the version, or the digest's beginning where the server knows none."""
        if not digest:
            return "-"
        if digest not in self._known.setdefault(model, {}):
            path = f"/v1/models/{quote(model, safe='')}/releases"
            try:
                releases = self._connection.get(path)["releases"]
            except CommandError:
                releases = []
            self._known[model] = {item["digest"]: item["version"] for item in releases}
            self._known[model].setdefault(digest, digest[:12])
        return self._known[model][digest]


def read_labels(given: list[str] | None) -> dict[str, str]:
    """Return labels from KEY=VALUE words.

    Raises:
        CommandError: if a word is none, or a key comes twice.
    """
    labels: dict[str, str] = {}
    for word in given or []:
        key, equals, value = word.partition("=")
        if not equals or not key or not value:
            raise CommandError(f"{word!r} is not a label.", "Write it as KEY=VALUE: site=lab.")
        if key in labels:
            raise CommandError(f"The label {key} is given twice.", "A device has one value each.")
        labels[key] = value
    return labels


@app.command("token")
def make_token(
    context: typer.Context,
    label: LabelOption = None,
    name: Annotated[
        str, typer.Option(metavar="DEVICE", help="The only name that the device may take.")
    ] = "",
    hours: Annotated[
        int, typer.Option(metavar="HOURS", help="How long the token is valid.", min=1)
    ] = 24,
    count: Annotated[
        int, typer.Option(metavar="N", help="For how many devices it is: a factory's batch.", min=1)
    ] = 1,
    prefix: Annotated[
        str, typer.Option(metavar="PREFIX", help="How the names of its devices must begin.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Make a one-time token with which one device may join, or a token for a batch.

    Carry it to the device and run: device-agent enroll TOKEN
    """
    body = {
        "labels": read_labels(label),
        "device": name,
        "valid_ms": hours * HOUR_MS,
        "count": count,
        "prefix": prefix,
    }
    made = connect(context).post("/v1/devices/tokens", body)
    # The token alone on standard output, so that a script can take it as it is.
    show(made, as_json, lambda: say(made["token"]))


@app.command("list")
def list_devices(
    context: typer.Context,
    cohort: Annotated[
        str | None, typer.Option(metavar="COHORT", help="Only the devices of this cohort.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the devices: who is online, and what they run."""
    connection = connect(context)
    found: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        page = connection.get("/v1/devices", cohort=cohort, after=after, count=PAGE)
        found += page["devices"]
        after = page["next_after"]
    now_ms = SystemClock().now_ms()
    versions = Versions(connection)
    show(
        found,
        as_json,
        lambda: print_table(
            ("DEVICE", "COHORT", "SEEN", "LABELS", "RUNS"),
            (
                (
                    device["name"],
                    device["cohort"],
                    _seen(device, now_ms),
                    joined(device["labels"]),
                    _running(device, versions),
                )
                for device in found
            ),
            empty="No devices yet. Make a token for the first by: edgefleet device token",
        ),
    )


@app.command("show")
def show_device(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Show one device: state, releases, and what it refused of late."""
    connection = connect(context)
    device = connection.get(f"/v1/devices/{quote(name, safe='')}")
    show(device, as_json, lambda: _describe(device, Versions(connection)))


@app.command("label")
def label_device(
    context: typer.Context, name: Name, label: LabelOption = None, as_json: AsJson = False
) -> None:
    """Replace all labels of a device; its cohort follows from them."""
    if not label:
        raise CommandError(
            "All labels of the device would be gone.", "Give at least one, as --label KEY=VALUE."
        )
    body = {"labels": read_labels(label)}
    device = connect(context).put(f"/v1/devices/{quote(name, safe='')}/labels", body)
    show(device, as_json, lambda: say(f"{name} is now in cohort {device['cohort']}."))


def _describe(device: dict[str, Any], versions: Versions) -> None:
    now_ms = SystemClock().now_ms()
    say(f"{device['name']}  cohort {device['cohort']}")
    say(f"  labels    {joined(device['labels']) or '-'}")
    say(f"  enrolled  {ago(device['enrolled_ms'], now_ms)}")
    say(f"  seen      {_seen(device, now_ms)}")
    if device["alarm"]:
        say(f"  ALARM     {device['alarm'].replace('_', ' ')}: edgefleet device replace, or")
        say("            edgefleet device clear-alarm once you know why")
    say(f"  agent     {device['agent'] or '-'}")
    say(f"  runtimes  {joined(device['capabilities']['runtimes']) or '-'}")
    say("")
    print_table(
        ("MODEL", "PHASE", "RUNS", "ASKED FOR", "REASON"),
        (
            (
                item["model"],
                item["phase"],
                versions.name(item["model"], item["active"]),
                versions.name(item["model"], item["target"]),
                ": ".join(filter(None, (item["reason"], item["detail"]))) or "-",
            )
            for item in device["progress"]
        ),
        empty="It has not reported any model yet.",
    )
    if device["refusals"]:
        say("")
        print_table(
            ("REFUSED", "REASON", "WHEN", "DETAIL"),
            (
                (item["topic"], item["reason"], ago(item["received_ms"], now_ms), item["detail"])
                for item in device["refusals"]
            ),
            empty="",
        )


def _seen(device: dict[str, Any], now_ms: int) -> str:
    # An online device speaks of its state only when that changes; its telemetry is another matter.
    if device["retired_ms"]:
        return "retired"
    if device["alarm"]:
        return str(device["alarm"]).replace("_", " ").upper()
    return "online" if device["online"] else ago(device["last_seen_ms"], now_ms)


def joined(values: dict[str, str]) -> str:
    """Return labels and the like in one line."""
    return " ".join(f"{key}={value}" for key, value in sorted(values.items()))


def _running(device: dict[str, Any], versions: Versions) -> str:
    return ", ".join(
        f"{item['model']} {versions.name(item['model'], item['active'])} ({item['phase']})"
        for item in device["progress"]
    )

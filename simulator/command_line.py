"""The command ``fleet-simulator``: the demo, live fleets, and whole fleets in virtual time.

Parses and calls, nothing more. What a command needs is imported when it runs, since they need very
different things.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from simulator import clock
from simulator.errors import SimulatorError

_DESCRIPTION = """\
Fleets for trying things out.

  fleet-simulator demo                       a good rollout and a bad one, from nothing, in a minute
  fleet-simulator live --devices 20 ...      real agents against a server that runs already
  fleet-simulator world --seed 7             a thousand devices in virtual time, the same every time
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 well, 1 not, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    command = {"demo": _demo, "live": _live, "world": _world}[options.command]
    try:
        return command(options)
    except SimulatorError as error:
        print(f"fleet-simulator: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("fleet-simulator: interrupted", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="fleet-simulator", description=_DESCRIPTION, formatter_class=formatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="a good release promoted, a bad one rolled back")
    demo.add_argument("--folder", type=Path, default=Path("build/demo"), help="for the reports")
    demo.add_argument("--devices", type=_positive, default=60, help="default: %(default)s")
    demo.add_argument("--processes", type=_positive, default=3, help="default: %(default)s")
    demo.add_argument("--seed", type=int, default=1, help="of training and images")
    demo.add_argument("--broker", default="embedded", help="as for edgefleet server")
    demo.add_argument("--keep", action="store_true", help="leave the server running at the end")

    live = commands.add_parser("live", help="real agents against a server that runs already")
    live.add_argument("--devices", type=_positive, default=10, help="default: %(default)s")
    live.add_argument(
        "--processes",
        type=_positive,
        default=2,
        help="over which the devices are spread (default: %(default)s)",
    )
    live.add_argument(
        "--server",
        default=os.environ.get("EDGEFLEET_URL", "http://127.0.0.1:8420"),
        help="the server's URL (EDGEFLEET_URL; default: %(default)s)",
    )
    live.add_argument(
        "--token",
        default=os.environ.get("EDGEFLEET_TOKEN", ""),
        help="an operator's token, which makes the devices' one-time tokens (EDGEFLEET_TOKEN)",
    )
    live.add_argument("--model", default="digits", help="what is fed (default: %(default)s)")
    live.add_argument(
        "--images",
        default="",
        help="npz file with one array, named as the model's input (default: scikit-learn's digits)",
    )
    live.add_argument("--rate", type=float, default=5.0, help="predictions a second on each device")
    live.add_argument("--label", action="append", default=[], metavar="NAME=VALUE")
    live.add_argument(
        "--folder", type=Path, help="of the devices, used again if it exists (default: a new one)"
    )
    live.add_argument("--prefix", default="device", help="of the devices' names")
    live.add_argument("--seed", type=int, default=1, help="of the images' order")
    live.add_argument(
        "--seconds", type=float, default=0.0, help="stop after this time (default: when told to)"
    )

    world = commands.add_parser("world", help="a fleet in virtual time, from one seed")
    world.add_argument("--devices", type=_positive, default=1000, help="default: %(default)s")
    world.add_argument("--seed", type=int, default=1, help="the same seed gives the same trace")
    return parser


def _demo(options: argparse.Namespace) -> int:
    from simulator.demo.run import Options, run

    return run(
        Options(
            folder=options.folder,
            devices=options.devices,
            processes=options.processes,
            seed=options.seed,
            broker=options.broker,
            keep=options.keep,
        )
    )


def _live(options: argparse.Namespace) -> int:
    from simulator.live.fleet import LiveFleet

    if not options.token:
        raise SimulatorError(
            "an operator's token is needed: --token, or EDGEFLEET_TOKEN; the server keeps the "
            "first one in the file admin-token of its data folder"
        )
    folder = options.folder or Path(tempfile.mkdtemp(prefix="fleet-simulator-"))
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    fleet = LiveFleet(
        url=options.server,
        token=options.token,
        devices=options.devices,
        processes=options.processes,
        folder=folder,
        seed=options.seed,
        model=options.model,
        rate=options.rate,
        images=options.images,
        labels=_labels(options.label),
        prefix=options.prefix,
    )
    print(
        f"{options.devices} real agents in {min(options.processes, options.devices)} processes, "
        f"several in each: own connection, own folder below {folder}, own runtime session",
        flush=True,
    )
    with fleet:
        began_s = clock.monotonic_s()
        while not stopping.wait(1.0):
            print(json.dumps(_brief(asdict(fleet.status()))), flush=True)
            if options.seconds and clock.monotonic_s() - began_s >= options.seconds:
                break
        failed = fleet.status().failed_inferences
    return 1 if failed else 0


def _brief(status: dict[str, object]) -> dict[str, object]:
    """Return a status with the devices counted per release."""
    active = status.pop("active")
    counts: dict[str, int] = {}
    if isinstance(active, dict):
        for digest in active.values():
            counts[digest[:12] or "nothing"] = counts.get(digest[:12] or "nothing", 0) + 1
    return {"releases": counts, **status}


def _world(options: argparse.Namespace) -> int:
    from simulator.world.scenario import run

    outcome = run(seed=options.seed, devices=options.devices)
    shown = asdict(outcome)
    for chapter in shown["chapters"]:
        chapter["decisions"] = len(chapter["decisions"])
    print(json.dumps(shown, indent=2, default=str))
    return 0


def _labels(pairs: list[str]) -> dict[str, str]:
    labels = dict[str, str]()
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark:
            raise SimulatorError(f"write a label as NAME=VALUE, not {pair!r}")
        labels[name] = value
    return labels


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())

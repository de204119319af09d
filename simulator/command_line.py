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
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from fleet_server.command_line.connection import Connection, Target
from fleet_server.command_line.device import Versions
from fleet_server.command_line.output import CommandError
from fleet_server.settings import Settings
from simulator import clock
from simulator.errors import SimulatorError

_DESCRIPTION = """\
Fleets for trying things out.

  fleet-simulator demo                   a good rollout and a bad one, in about two minutes
  fleet-simulator models                 three releases as files, to push by hand
  fleet-simulator live --devices 20      real agents against a server that runs already
  fleet-simulator world --seed 7         a thousand devices in virtual time, always the same

With models and live, and edgefleet, you do a rollout by hand: README.md, ten minutes.
"""

_EPILOG = """\
Exit status: 0 well, 1 something is wrong (the message says what), 2 wrong usage.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 well, 1 not, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    command = {"demo": _demo, "models": _models, "live": _live, "world": _world}[options.command]
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
        prog="fleet-simulator",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"fleet-simulator {metadata.version('edgefleet')}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="a good release promoted, a bad one rolled back")
    demo.add_argument("--folder", type=Path, default=Path("build/demo"), help="for the reports")
    demo.add_argument("--devices", type=_positive, default=60, help="default: %(default)s")
    demo.add_argument("--processes", type=_positive, default=3, help="default: %(default)s")
    demo.add_argument("--seed", type=int, default=1, help="of training and images")
    demo.add_argument("--broker", default="embedded", help="as for edgefleet server")
    demo.add_argument("--keep", action="store_true", help="leave the server running at the end")

    models = commands.add_parser("models", help="three releases as files, to push by hand")
    models.add_argument(
        "--folder",
        type=Path,
        default=Path("models"),
        help="gets a folder a release (default: %(default)s)",
    )
    models.add_argument(
        "--seed", type=int, default=1, help="of the training (default: %(default)s)"
    )

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
        default=os.environ.get("EDGEFLEET_URL", ""),
        metavar="URL",
        help="the server (EDGEFLEET_URL; default: that of the data folder)",
    )
    live.add_argument(
        "--token",
        default=os.environ.get("EDGEFLEET_TOKEN", ""),
        help="an operator's token, which makes the devices' one-time tokens (EDGEFLEET_TOKEN; "
        "default: that of the data folder)",
    )
    live.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("EDGEFLEET_DATA_DIR") or Settings().data_dir),
        metavar="FOLDER",
        help="the server's data folder, if it runs here (EDGEFLEET_DATA_DIR; default: %(default)s)",
    )
    live.add_argument("--model", default="digits", help="what is fed (default: %(default)s)")
    live.add_argument(
        "--images",
        default="",
        help="npz file with one array, named as the model's input (default: scikit-learn's digits)",
    )
    live.add_argument(
        "--rate",
        type=float,
        default=5.0,
        help="predictions a second on each device (default: %(default)s)",
    )
    live.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of every device, for example site=lab; may be given several times",
    )
    live.add_argument(
        "--folder",
        type=Path,
        help="of the devices; one that is enrolled there comes back as itself (default: "
        "live-devices in the server's data folder, or a new folder for a server elsewhere)",
    )
    live.add_argument(
        "--prefix", default="device", help="of the devices' names (default: %(default)s)"
    )
    live.add_argument("--seed", type=int, default=1, help="of the images' order")
    live.add_argument(
        "--seconds", type=float, default=0.0, help="stop after this time (default: at Ctrl-C)"
    )
    live.add_argument("--json", action="store_true", help="a JSON object a second, for scripts")

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


def _models(options: argparse.Namespace) -> int:
    from simulator import digits, model_files

    models = list(digits.train(options.seed).values())
    for model, folder in zip(models, model_files.write(models, options.folder), strict=True):
        print(
            f"{folder}: held-out {model.accuracy:.1%}, on what devices see "
            f"{model.field_accuracy:.1%}"
        )
    first = options.folder / models[0].version
    print(
        f"Push one by: edgefleet model push {digits.MODEL} {first} --version {models[0].version} "
        f"--metadata {first / model_files.METADATA} --wait"
    )
    return 0


def _live(options: argparse.Namespace) -> int:
    from simulator.live.fleet import LiveFleet

    target = Target(options.server, options.token, options.data_dir.expanduser())
    try:
        url, token = target.find_url(), target.find_token()
    except CommandError as error:
        raise SimulatorError(f"{error.detail} {error.advice}") from error
    if options.folder:
        folder = options.folder
    elif options.server:
        folder = Path(tempfile.mkdtemp(prefix="fleet-simulator-"))
    else:
        folder = target.data_dir / "live-devices"
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    fleet = LiveFleet(
        url=url,
        token=token,
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
    processes = min(options.processes, options.devices)
    print(
        f"{options.devices} real agents in {processes} process{'es' if processes > 1 else ''} "
        f"start at {url}; each has its own connection, its own runtime sessions and its own "
        f"folder below {folder}. Ctrl-C stops them.",
        file=sys.stderr,
    )
    said, versions = "", Versions(Connection(target))
    with fleet:
        began_s = clock.monotonic_s()
        while not stopping.wait(1.0):
            status = asdict(fleet.status())
            if options.json:
                print(json.dumps(_brief(status)), flush=True)
            elif said != (said := _sentence(status, options.model, versions)):
                print(said, flush=True)
            if options.seconds and clock.monotonic_s() - began_s >= options.seconds:
                break
        last = fleet.status()
    if not options.json:
        print(f"{last.predictions:,} predictions, {last.failed_inferences} failed.")
    return 1 if last.failed_inferences else 0


def _brief(status: dict[str, Any]) -> dict[str, Any]:
    """Return a status with the devices counted per release."""
    counts = Counter(digest[:12] or "nothing" for digest in status.pop("active").values())
    return {"releases": dict(counts), **status}


def _sentence(status: dict[str, Any], model: str, versions: Versions) -> str:
    """Return what a person wants to see change: how many run which release, and what failed."""
    running = Counter(versions.name(model, digest) for digest in status["active"].values())
    runs = ", ".join(
        f"{count} run {'nothing' if name == '-' else name}" for name, count in running.most_common()
    )
    failed = f"; {status['failed_inferences']} predictions failed" * bool(
        status["failed_inferences"]
    )
    return f"{status['connected']} connected: {runs}{failed}"


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

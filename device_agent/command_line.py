"""The command ``device-agent``: enrol a device, run it, look at it.

Parses and calls, nothing more. The folder comes from --folder, else from DEVICE_AGENT_FOLDER, else
it is ./device-agent-data.
"""

import argparse
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from device_agent.agent import Agent
from device_agent.core.state import State
from device_agent.errors import AgentError, EnrolmentFailed, NotEnrolled
from device_agent.inference.capabilities import capabilities
from device_agent.shell import doctor
from device_agent.shell.bench import Bench
from device_agent.shell.certificate import PAIR_FILE
from device_agent.shell.clock import SystemClock
from device_agent.shell.daemon import AgentStatus, status_of
from device_agent.shell.identity import enrol, load_identity
from device_agent.shell.store import Store

_DESCRIPTION = """\
Runs verified models on this device and keeps them up to date with its fleet.

First get a one-time token from the fleet's operator (edgefleet device token), then:

  device-agent enroll TOKEN --name door-17   join the fleet, once
  device-agent run                           stay in it, until stopped
  device-agent bench                         instead: time models for the server
  device-agent status                        what runs here
  device-agent doctor                        what is wrong, and what to do about it

The device makes a key that never leaves it, gets a certificate for it, and renews that by itself.
"""

_EPILOG = """\
Exit status: 0 well, 1 something is wrong (the message says what to do), 2 wrong usage.
An application runs models in its own process: from device_agent.agent import Agent.
"""

_LEVELS = ("debug", "info", "warning", "error")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = _parser().parse_args(arguments)
    folder = Path(options.folder)
    try:
        return _COMMANDS[options.command](folder, options)
    except AgentError as error:
        print(f"device-agent: {error}", file=sys.stderr)
    except OSError as error:
        print(
            f"device-agent: {folder} cannot be used: {error.strerror or error}. "
            "Choose another with --folder.",
            file=sys.stderr,
        )
    return 1


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="device-agent", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=formatter
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--folder",
        default=os.environ.get("DEVICE_AGENT_FOLDER", "device-agent-data"),
        help="where everything is kept that must not be forgotten (DEVICE_AGENT_FOLDER; "
        "default: %(default)s)",
    )
    parser.add_argument(
        "--version", action="version", version=f"device-agent {metadata.version('edgefleet')}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    enroll = commands.add_parser(
        "enroll", parents=[shared], help="join a fleet with a one-time token"
    )
    enroll.add_argument(
        "token",
        metavar="TOKEN",
        help="the token, for this device or a batch; - reads it from standard input",
    )
    enroll.add_argument(
        "--name",
        default="",
        help="this device's name: a-z, 0-9 and - (default: made from the host's name)",
    )
    enroll.add_argument(
        "--replace",
        action="store_true",
        help="give up who the device was in this folder; stop device-agent run first",
    )
    run = commands.add_parser("run", parents=[shared], help="stay in the fleet until stopped")
    run.add_argument(
        "--log-level",
        choices=_LEVELS,
        default=os.environ.get("DEVICE_AGENT_LOG_LEVEL", "info"),
        help="how much to say (DEVICE_AGENT_LOG_LEVEL; default: %(default)s)",
    )
    run.add_argument(
        "--download-origin",
        metavar="ORIGIN",
        action="append",
        help="where the server may lead to for files, such as "
        "https://BUCKET.s3.REGION.amazonaws.com; can be repeated "
        "(DEVICE_AGENT_DOWNLOAD_ORIGINS, separated by spaces; default: nowhere)",
    )
    commands.add_parser(
        "bench", parents=[shared], help="time models for the server that stages them, until stopped"
    )
    status = commands.add_parser("status", parents=[shared], help="what runs on this device")
    status.add_argument("--json", action="store_true", help="for scripts")
    findings = commands.add_parser(
        "doctor", parents=[shared], help="what is wrong with this device, and what to do"
    )
    findings.add_argument("--json", action="store_true", help="for scripts")
    return parser


def _enroll(folder: Path, options: argparse.Namespace) -> int:
    token = sys.stdin.readline() if options.token == "-" else options.token
    name = options.name or _host_name()
    store = Store(folder)
    if not options.replace:
        _check_nobody(store)
    identity = enrol(store, token, name, capabilities(), SystemClock())
    print(f"{identity.device} is a device of fleet {identity.fleet} now; next: device-agent run")
    print(f"its key lies in {store.folder / PAIR_FILE}: never copy it, each device has its own")
    return 0


def _check_nobody(store: Store) -> None:
    """Keep a slip from ending a device that may be running from this folder.

    Raises:
        EnrolmentFailed: if the folder holds an identity; the token is not spent.
    """
    try:
        held = load_identity(store)
    except NotEnrolled:
        return
    raise EnrolmentFailed(
        f"{store.folder} is {held.device} of fleet {held.fleet} already: choose another with "
        "--folder, or stop device-agent run and give --replace"
    )


def _run(folder: Path, options: argparse.Namespace) -> int:
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)-7s %(message)s"
    )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    origins = options.download_origin
    if origins is None:
        origins = os.environ.get("DEVICE_AGENT_DOWNLOAD_ORIGINS", "").split()
    agent = Agent.open(folder, download_origins=origins)
    try:
        agent.start()
        status = agent.status()
        logging.info("%s of fleet %s runs in %s", status.device, status.fleet, folder)
        stopped.wait()
        logging.info("stopping")
    finally:
        agent.stop()
    return 0


def _bench(folder: Path, _options: argparse.Namespace) -> int:
    logging.basicConfig(level="WARNING", format="%(asctime)s %(levelname)-7s %(message)s")
    bench = Bench(Store(folder), SystemClock(), lambda line: print(line, flush=True))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: bench.stop())
    try:
        bench.run()
    finally:
        bench.close()
    return 0


def _status(folder: Path, options: argparse.Namespace) -> int:
    store = Store(folder)
    identity = load_identity(store)
    status = status_of(State(store.load_record() or identity.first_record()))
    if options.json:
        shown = asdict(status)
        del shown["connected"]  # of the process that runs, which this one is not
        print(json.dumps(shown, indent=2))
    else:
        _show(status)
    return 0


def _show(status: AgentStatus) -> None:
    print(f"{status.device} of fleet {status.fleet}")
    if not status.models:
        print("  no models yet: the fleet has not sent a directive for this device's cohort")
    for name, model in sorted(status.models.items()):
        running = model.version or model.active[:12] or "nothing"
        if model.disabled:
            running = "disabled by the fleet"
        print(f"  {name}: {running} ({model.phase.value})")
        for label, digest in (("active", model.active), ("standby", model.standby)):
            if digest:
                print(f"    {label:8} {digest}")
        if model.reason:
            print(f"    {model.reason}: {model.detail}")


def _doctor(folder: Path, options: argparse.Namespace) -> int:
    findings = list(doctor.examine(Store(folder), SystemClock()))
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.well else 'BAD '} {finding.subject}: {finding.detail}")
            if finding.advice:
                print(f"      do: {finding.advice}")
    return 0 if all(finding.well for finding in findings) else 1


def _host_name() -> str:
    letters = "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname())
    return letters.lower().strip("-")[:63].strip("-") or "device"


_COMMANDS = {
    "enroll": _enroll,
    "run": _run,
    "bench": _bench,
    "status": _status,
    "doctor": _doctor,
}

if __name__ == "__main__":
    sys.exit(main())

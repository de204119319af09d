"""Fuzzes every parser of untrusted bytes, and prints what became of the inputs.

    python tests/fuzz/run.py --inputs 1000000 [--only broker] [--engine hypothesis]

A quarter of the inputs is drawn by hypothesis, which is slower, the rest by atheris
(tests/fuzz/engines.py). That is in the extra ``fuzz``, and is left out, loudly, where it is not
installed. Targets share the inputs by what one costs. The exit status is 1 if a target raised what
it does not document, or grew beyond its bound; the bytes that did it lie in build/fuzz.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
if str(PROJECT) not in sys.path:
    sys.path.insert(0, str(PROJECT))

LARGEST_GROWTH_BYTES = 192 * 1024 * 1024
"""Resident memory that a target's process may take above what it had when warm. Hypothesis and
libFuzzer keep examples and a corpus, which is most of it."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz every parser of untrusted bytes.")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in total, over all targets")
    parser.add_argument("--only", action="append", help="this target (repeatable)")
    parser.add_argument("--engine", choices=["hypothesis", "atheris"], help="this engine alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return _child(arguments.child, arguments.engine, arguments.inputs, arguments.seed)

    from tests.fuzz.targets import TARGETS

    engines = [arguments.engine] if arguments.engine else ["hypothesis", "atheris"]
    if "atheris" in engines and importlib.util.find_spec("atheris") is None:
        print("fuzz: NOT INSTALLED: atheris (pip install 'edgefleet[fuzz]'); without coverage")
        engines = ["hypothesis"]
    targets = [item for item in TARGETS if not arguments.only or item.name in arguments.only]
    shares = {item.name: 1 / item.cost for item in targets}
    rows = []
    for target in targets:
        share = arguments.inputs * shares[target.name] / sum(shares.values())
        for engine in engines:
            part = {"hypothesis": 0.25, "atheris": 0.75}[engine] if len(engines) > 1 else 1.0
            rows.append(_run(target.name, engine, int(share * part) + 1, arguments.seed))
            print(_line(rows[-1]), flush=True)
    total = sum(row["inputs"] for row in rows)
    faults = sum(row["faults"] for row in rows)
    grown = [row["target"] for row in rows if row["grown_bytes"] > LARGEST_GROWTH_BYTES]
    print(f"fuzz: {total} inputs, {faults} faults, {len(grown)} grew too much: {grown}")
    return 1 if faults or grown or total < arguments.inputs else 0


def _run(name: str, engine: str, inputs: int, seed: int) -> dict[str, Any]:
    began_s = time.monotonic()
    command = [sys.executable, str(HERE / "run.py"), "--child", name, "--engine", engine]
    done = subprocess.run(
        [*command, "--inputs", str(inputs), "--seed", str(seed)],
        check=False,
        capture_output=True,
        cwd=PROJECT,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith(b"{")]
    row: dict[str, Any] = {"target": name, "engine": engine, "inputs": 0, "accepted": 0}
    # A process that ended without a word crashed, which is the worst fault of all.
    row |= json.loads(found[-1]) if found else {"faults": 1, "grown_bytes": 0}
    if row["faults"]:
        # libFuzzer says a lot; only where something went wrong it is of interest.
        print(done.stderr.decode("utf-8", "replace")[-20_000:], file=sys.stderr)
    return {**row, "seconds": time.monotonic() - began_s}


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['target']:<26} {row['engine']:<10} {row['inputs']:>8} inputs "
        f"{row['accepted']:>8} accepted {row['faults']:>3} faults "
        f"{row['grown_bytes'] / 2**20:>6.1f} MiB grown {row['seconds']:>6.1f} s"
    )


def _child(name: str, engine: str, inputs: int, seed: int) -> int:
    def say(tally: Any) -> None:
        os.write(1, json.dumps(asdict(tally)).encode() + b"\n")

    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(
            include=["fleet_contract", "device_agent", "fleet_server", "tuf"],
            enable_loader_override=False,
        ):
            from tests.fuzz import engines
        engines.by_atheris(engines.target_of(name), inputs, seed, say)
        return 0
    from tests.fuzz import engines

    say(engines.by_hypothesis(engines.target_of(name), inputs, seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())

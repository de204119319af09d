"""Runs the benchmarks of this folder, prints a table and writes build/bench.json.

    python tests/benchmarks/run.py [--only swap] [--output build/bench.json]

A benchmark is a module beside this one with ``def run() -> list[Measurement]`` (see
tests/benchmarks/measurement.py); it is found by being there. A figure that misses its goal is said
to; only a benchmark that fails makes the exit status 1, since a busy machine is no error.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
if str(PROJECT) not in sys.path:
    sys.path.insert(0, str(PROJECT))

from tests.benchmarks.measurement import Measurement  # noqa: E402

NO_BENCHMARKS = {"run", "measurement", "bench_models", "trust_process"}


def main() -> int:
    names = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NO_BENCHMARKS)
    parser = argparse.ArgumentParser(description="Measure against references of the same run.")
    parser.add_argument("--only", action="append", choices=names, help="run this one (repeatable)")
    parser.add_argument("--output", type=Path, default=PROJECT / "build" / "bench.json")
    arguments = parser.parse_args()
    measurements: list[Measurement] = []
    failed: list[str] = []
    for name in arguments.only or names:
        started = time.monotonic()
        print(f"bench: {name} ...", flush=True)
        try:
            measurements += importlib.import_module(f"tests.benchmarks.{name}").run()
        except Exception:
            traceback.print_exc()
            failed.append(name)
        print(f"bench: {name} took {time.monotonic() - started:.1f} s", flush=True)
    print_table(measurements)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    rows = [measurement.row() for measurement in measurements]
    arguments.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(f"\nbench: {len(rows)} figures in {arguments.output}")
    if failed:
        print(f"bench: FAILED: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def print_table(measurements: list[Measurement]) -> None:
    head = ("figure", "value", "unit", "reference", "its value", "ratio", "goal", "met")
    rows = [
        (
            item.name,
            f"{item.value:.5g}",
            item.unit,
            item.reference,
            "" if item.reference_value is None else f"{item.reference_value:.5g}",
            "" if item.ratio is None else f"{item.ratio:.3f}",
            item.goal,
            {True: "yes", False: "NO", None: ""}[item.met],
        )
        for item in measurements
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    print()
    for row in (head, tuple("-" * width for width in widths), *rows):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


if __name__ == "__main__":
    sys.exit(main())

"""Writes the bill of materials of what is delivered, as CycloneDX JSON.

cyclonedx-py describes an environment; this leaves out of it what no delivered extra asks for (test
tools, the demo's). Run by an interpreter of that environment: make sbom.
"""

import argparse
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "edgefleet"
DELIVERED = ("agent", "server", "objects", "postgres")
"""The extras of what runs on devices and servers."""


def closure(root: str, extras: tuple[str, ...]) -> set[str]:
    """Return the names of all installed distributions that these extras need, without the root."""
    seen: set[tuple[str, str]] = set()
    to_see = [(root, extra) for extra in ("", *extras)]
    while to_see:
        name, extra = to_see.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in metadata.requires(name) or []:
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                needed = canonicalize_name(wanted.name)
                to_see += [(needed, more) for more in ("", *wanted.extras)]
    return {name for name, _ in seen} - {root}


def main() -> None:
    """Write the file, or stop with what is wrong."""
    parser = argparse.ArgumentParser(description="Write the bill of materials.")
    parser.add_argument("--tool", required=True, help="the cyclonedx-py to run")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    made = subprocess.run(
        [
            *(given.tool, "environment", "--pyproject", "pyproject.toml"),
            *("--output-reproducible", sys.executable),
        ],
        check=True,
        stdout=subprocess.PIPE,
    )
    document = json.loads(made.stdout)
    wanted = closure(ROOT, DELIVERED)
    components = [
        item for item in document["components"] if canonicalize_name(item["name"]) in wanted
    ]
    missing = wanted - {canonicalize_name(item["name"]) for item in components}
    if missing:
        sys.exit(f"sbom: the environment lacks {', '.join(sorted(missing))}")
    refs = {item["bom-ref"] for item in components}
    root = document["metadata"]["component"]["bom-ref"]
    document["components"] = components
    document["dependencies"] = [
        {
            "ref": item["ref"],
            "dependsOn": sorted(refs.intersection(item.get("dependsOn", []))),
        }
        for item in document["dependencies"]
        if item["ref"] in refs or item["ref"] == root
    ]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"sbom: {len(components)} components in {given.output}")


if __name__ == "__main__":
    main()

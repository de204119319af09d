"""Looks for known vulnerabilities of the pinned dependencies, by pip-audit.

OSV is asked, since pip-audit's other source passes over in silence what it does not find. Decides
which findings are accepted and until when, and what a scan is worth that could not be made: it says
NOT SCANNED, loudly, and fails only with --require. A database that does not know the canary, a
release with old known flaws, counts as none at all: a mirror that answers for everything "nothing
known" must not pass for a clean scan.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

OSV_URL = "https://api.osv.dev/v1/query"
CANARY = ("jinja2", "2.4.1")
ANSWER_BYTES = 4 * 1024**2
PROBE_S = 15.0
AUDIT_S = 900.0
CLEAN, FOUND, BROKEN = 0, 1, 2


def _why_useless(url: str) -> str:
    """Return why a database is of no use; nothing if it knows the canary."""
    name, version = CANARY
    query = {"package": {"name": name, "ecosystem": "PyPI"}, "version": version}
    request = urllib.request.Request(
        url, json.dumps(query).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=PROBE_S) as response:
            answer = json.loads(response.read(ANSWER_BYTES))
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    known = answer.get("vulns") if isinstance(answer, dict) else None
    return "" if known else f"it knows nothing against {name} {version}"


def _accepted(path: Path, today: datetime.date) -> dict[str, str]:
    """Return what is accepted today: id → reason. An end that has passed ends the acceptance."""
    found = {}
    for item in tomllib.loads(path.read_text(encoding="utf-8")).get("accepted", []):
        until = item["until"]
        if not item["reason"].strip() or not isinstance(until, datetime.date):
            sys.exit(f"scan: {path}: {item['id']} needs a reason, and a date for its end")
        if until >= today:
            found[item["id"]] = item["reason"]
        else:
            print(f"scan: the acceptance of {item['id']} ended on {until}")
    return found


def _findings(report: Any, accepted: dict[str, str]) -> tuple[list[str], list[str]]:
    """Return the findings that are not accepted, and what pip-audit passed over."""
    open_ones, skipped = [], []
    for item in report["dependencies"]:
        if "skip_reason" in item:
            skipped.append(f"{item['name']}: {item['skip_reason']}")
        for flaw in item.get("vulns", []):
            names = {flaw["id"], *flaw.get("aliases", [])}
            fixed = ", ".join(flaw.get("fix_versions", [])) or "no release yet"
            line = f"{item['name']} {item['version']}: {flaw['id']} (mended in {fixed})"
            reason = next((accepted[name] for name in sorted(names) if name in accepted), None)
            if reason is None:
                open_ones.append(line)
            else:
                print(f"scan: accepted: {line}: {reason}")
    return open_ones, skipped


def main() -> int:
    """Scan, and return 0 (clean, or not scanned), 1 (vulnerable) or 2 (the scan broke)."""
    parser = argparse.ArgumentParser(description="Look for known vulnerabilities.")
    parser.add_argument("--tool", required=True, help="the pip-audit to run")
    parser.add_argument("--constraints", type=Path, default=Path("constraints.txt"))
    parser.add_argument("--accepted", type=Path, default=Path(".ci/accepted.toml"))
    parser.add_argument("--osv-url", default=OSV_URL)
    parser.add_argument("--require", action="store_true", help="fail if no database is reachable")
    given = parser.parse_args()
    accepted = _accepted(given.accepted, datetime.date.today())
    if why := _why_useless(given.osv_url):
        print("scan: NOT SCANNED: no vulnerability database reachable")
        print(f"scan:   {given.osv_url}: {why}")
        return BROKEN if given.require else CLEAN
    audit = subprocess.run(
        [
            *(given.tool, "--requirement", str(given.constraints), "--no-deps", "--disable-pip"),
            *("--format", "json", "--progress-spinner", "off", "--vulnerability-service", "osv"),
            *("--osv-url", given.osv_url),
        ],
        stdout=subprocess.PIPE,
        check=False,
        timeout=AUDIT_S,
    )
    try:
        report = json.loads(audit.stdout)
        found, skipped = _findings(report, accepted)
    except (ValueError, KeyError, TypeError) as error:
        print(f"scan: pip-audit broke (exit code {audit.returncode}): {error!r}")
        return BROKEN
    if skipped or not report["dependencies"]:
        print("scan: pip-audit passed over what it has to look at:", *skipped, sep="\nscan:   ")
        return BROKEN
    if found:
        print("scan: known vulnerabilities:", *found, sep="\nscan:   ")
        print(f"scan: move to a mended version, or accept it with a reason in {given.accepted}")
        return FOUND
    print(f"scan: nothing known against {len(report['dependencies'])} dependencies")
    return CLEAN


if __name__ == "__main__":
    sys.exit(main())

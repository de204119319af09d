"""Guards from a scan that finds nothing because it did not look, and from a list of parts that
leaves some out.

The database of vulnerabilities is one of ours, on loopback, that speaks OSV's form.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = ROOT / "build" / "supply" / "bin"
NOWHERE = "http://127.0.0.1:9/"
CANARY_FLAW = {"jinja2": "PYSEC-2014-8"}


@pytest.fixture
def tools() -> Path:
    """Where pip-audit and cyclonedx-py are; without them the test is skipped (CI: fails)."""
    if not (TOOLS / "pip-audit").exists():
        reason = "NOT INSTALLED: pip-audit and cyclonedx-py (make scan installs them)"
        if os.environ.get("CI"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return TOOLS


@dataclass
class Osv:
    """A database: package → id of a flaw that all its versions have."""

    url: str
    flaws: dict[str, str]
    asked: list[str]


@pytest.fixture
def osv() -> Iterator[Osv]:
    flaws: dict[str, str] = dict(CANARY_FLAW)
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = query["package"]["name"]
            asked.append(name)
            answer = {"vulns": [_flaw(flaws[name], name)]} if name in flaws else {}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Not among the test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Osv(f"http://127.0.0.1:{server.server_address[1]}/v1/query", flaws, asked)
    server.shutdown()
    server.server_close()
    thread.join()


def _flaw(name: str, package: str) -> dict[str, Any]:
    event = {"events": [{"introduced": "0"}, {"fixed": "9.9.9"}], "type": "ECOSYSTEM"}
    affected = {"package": {"name": package, "ecosystem": "PyPI"}, "ranges": [event]}
    return {"id": name, "summary": "for a test", "affected": [affected]}


@dataclass
class Scan:
    """Runs the scan over two pinned packages."""

    folder: Path

    def __call__(self, *more: str, tool: Path = TOOLS / "pip-audit", accepted: str = "") -> Any:
        (self.folder / "constraints.txt").write_text("first-part==1.0\nsecond-part==2.0\n")
        (self.folder / "accepted.toml").write_text(accepted)
        return subprocess.run(
            [
                sys.executable,
                ROOT / ".ci" / "scan.py",
                "--tool",
                tool,
                "--constraints",
                self.folder / "constraints.txt",
                "--accepted",
                self.folder / "accepted.toml",
                *more,
            ],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
        )


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    return Scan(tmp_path)


def test_scan_without_a_database_says_so_loudly(scan: Scan) -> None:
    done = scan("--osv-url", NOWHERE)
    assert done.returncode == 0
    assert "NOT SCANNED: no vulnerability database reachable" in done.stdout
    assert scan("--osv-url", NOWHERE, "--require").returncode == 2


def test_database_that_knows_nothing_is_none(scan: Scan, osv: Osv) -> None:
    osv.flaws.clear()
    done = scan("--osv-url", osv.url)
    assert "NOT SCANNED" in done.stdout
    assert "knows nothing against jinja2" in done.stdout


@pytest.mark.slow
def test_finding_fails_and_a_clean_scan_passes(tools: Path, scan: Scan, osv: Osv) -> None:
    done = scan("--osv-url", osv.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing known against 2 dependencies" in done.stdout
    assert {"first-part", "second-part"} <= set(osv.asked)
    osv.flaws["second-part"] = "PYSEC-2026-7"
    done = scan("--osv-url", osv.url)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "second-part 2.0: PYSEC-2026-7 (mended in 9.9.9)" in done.stdout


@pytest.mark.slow
def test_acceptance_ends(tools: Path, scan: Scan, osv: Osv) -> None:
    osv.flaws["second-part"] = "PYSEC-2026-7"
    entry = '[[accepted]]\nid = "PYSEC-2026-7"\nreason = "never called"\nuntil = {}\n'
    done = scan("--osv-url", osv.url, accepted=entry.format("2199-01-01"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "never called" in done.stdout
    done = scan("--osv-url", osv.url, accepted=entry.format("2020-01-01"))
    assert done.returncode == 1
    assert "ended on 2020-01-01" in done.stdout
    done = scan(
        "--osv-url", osv.url, accepted=entry.format("2199-01-01").replace("never called", "")
    )
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("prints", "said"),
    [
        ("echo no such option >&2; exit 1", "pip-audit broke (exit code 1)"),
        ("exit 0", "pip-audit broke (exit code 0)"),
        ("echo '{\"dependencies\": []}'", "passed over"),
        (
            'echo \'{"dependencies": [{"name": "first-part", "skip_reason": "not found"}]}\'',
            "first-part: not found",
        ),
    ],
)
def test_scan_that_breaks_is_no_clean_scan(
    scan: Scan, osv: Osv, tmp_path: Path, prints: str, said: str
) -> None:
    stub = tmp_path / "pip-audit"
    stub.write_text(f"#!/bin/sh\n{prints}\n")
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    done = scan("--osv-url", osv.url, tool=stub)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stdout


@pytest.mark.slow
def test_bill_of_materials_has_what_is_delivered_and_no_more(tools: Path, tmp_path: Path) -> None:
    path = tmp_path / "sbom.cdx.json"
    subprocess.run(
        [
            sys.executable,
            ROOT / ".ci" / "sbom.py",
            "--tool",
            tools / "cyclonedx-py",
            "--output",
            path,
        ],
        check=True,
        cwd=ROOT,
    )
    document = json.loads(path.read_text())
    assert (document["bomFormat"], document["metadata"]["component"]["name"]) == (
        *("CycloneDX", "edgefleet"),
    )
    parts = {item["name"].lower(): item["version"] for item in document["components"]}
    assert {"cryptography", "onnxruntime", "paho-mqtt", "psycopg", "starlette", "tuf"} <= set(parts)
    assert not {"pytest", "mypy", "scikit-learn", "pip", "edgefleet"} & set(parts)
    assert all(item["purl"].startswith("pkg:pypi/") for item in document["components"])
    assert str(ROOT) not in path.read_text()

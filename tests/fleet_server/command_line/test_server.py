"""Guards from a server process that starts half, does not say how to go on, or does not end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[3]
DEADLINE_S = 60.0
pytestmark = pytest.mark.slow

Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch(tmp_path: Path, free_port: int) -> Iterator[Launch]:
    """Start ``edgefleet server`` as a process of its own; the embedded broker unless told."""
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str, data_dir: Path | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fleet_server.command_line"]
        command += ["--data-dir", str(data_dir or tmp_path / "data"), "server"]
        command += ["--broker", "embedded", "--device-port", "0", *words]
        command += ["--broker-port", str(free_port)]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def read_welcome(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if "Ctrl-C" in line:
            return lines
    raise AssertionError(f"it ended: {lines} {process.communicate()}")


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    return process.communicate(timeout=DEADLINE_S)


def test_newcomer_is_not_told_how_to_go_on(launch: Launch, tmp_path: Path) -> None:
    process = launch("--port", "0")
    welcome = read_welcome(process)
    text = "\n".join(welcome)
    url = next(line.split()[-1] for line in welcome if line.split()[:1] == ["API"])
    assert f"{url}/docs" in text
    assert str(tmp_path / "data" / "admin-token") in text
    assert "embedded in this process" in text
    assert f"edgefleet --data-dir {tmp_path / 'data'} device token" in text
    assert "FOR TRYING OUT" in text, "the log may go where nobody looks"
    assert httpx.get(f"{url}/docs", timeout=DEADLINE_S).status_code == 200
    assert (tmp_path / "data" / "server-url").read_text().strip() == url
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    process.send_signal(signal.SIGTERM)
    out, err = end(process)
    assert process.returncode == 0, err
    token = (tmp_path / "data" / "admin-token").read_text().strip()
    assert token not in text + out + err
    # The log is for programs, and in order to the end.
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert events.index("started") < events.index("stopping")
    assert any("for trying out" in event for event in events)


def test_second_server_on_the_same_folder(launch: Launch) -> None:
    first = launch("--port", "0")
    read_welcome(first)
    _, err = end(launch("--port", "0"))
    assert err.startswith("error: Another server uses the data folder")
    assert f"process {first.pid}" in err and "Traceback" not in err
    first.kill()
    first.wait(DEADLINE_S)
    # The lock went with the process, however it ended.
    read_welcome(launch("--port", "0"))


def test_port_that_is_taken(launch: Launch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = launch("--port", str(taken.getsockname()[1]))
        _, err = end(process)
    assert process.returncode == 1
    assert "--port" in err and "Traceback" not in err


def test_setting_that_cannot_be(launch: Launch) -> None:
    process = launch("--port", "0", "--fleet", "../home")
    _, err = end(process)
    assert process.returncode == 1
    assert "EDGEFLEET_FLEET" in err and "Traceback" not in err


def test_killed_server_forgets_what_it_promised(
    launch: Launch, tmp_path: Path, pick_port: Callable[[], int]
) -> None:
    port = str(pick_port())
    process = launch("--port", port)
    welcome = read_welcome(process)
    url = next(line.split()[-1] for line in welcome if line.split()[:1] == ["API"])
    token = (tmp_path / "data" / "admin-token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    asked: Any = {"headers": headers, "timeout": DEADLINE_S}
    body = {"stopped": True, "reason": "smoke"}
    promised = httpx.post(f"{url}/v1/fleet/stop", json=body, **asked).json()
    process.kill()
    process.wait(DEADLINE_S)
    again = launch("--port", port)
    read_welcome(again)
    assert httpx.get(f"{url}/v1/fleet/stop", **asked).json() == promised
    deadline = time.monotonic() + DEADLINE_S
    while httpx.get(f"{url}/ready", **asked).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)

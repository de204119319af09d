"""Guards from an upload of half a gigabyte that the server holds in memory.

The figure is the server's own peak (``VmHWM``), set back before, on either way in. The model is a
file full of holes: what it holds does not matter for how it is received.
"""

from __future__ import annotations

import hashlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from fleet_server.command_line.connection import Connection, Target
from fleet_server.command_line.output import CommandError
from fleet_server.command_line.uploading import send_release
from tests.kill_points.upload_server import UploadServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc"),
]

SIZE_BYTES = 500 * 1000**2
MOST_BYTES = 100 * 1000**2


def peak_bytes(process_id: int, *, anew: bool = False) -> int:
    """The largest memory of a process, since it was last counted anew."""
    if anew:
        Path(f"/proc/{process_id}/clear_refs").write_text("5")
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("big") / "model.onnx"
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
    return path


@pytest.fixture
def server(tmp_path: Path, free_port: int) -> Iterator[UploadServer]:
    made = UploadServer(tmp_path, free_port)
    try:
        made.start()
        yield made
    finally:
        made.end(signal.SIGTERM)
        made.http.close()


def in_pieces(server: UploadServer, files: dict[str, Path], folder: Path) -> str:
    connection = Connection(Target(f"http://127.0.0.1:{server.port}", server.token, folder))
    with closing(connection), pytest.raises(CommandError) as caught:
        send_release(connection, "toy", {"version": "1.0.0"}, files, Console(quiet=True))
    (upload,) = server.http.get("/v1/uploads").json()["uploads"]
    assert (upload["size_bytes"], upload["complete"]) == (SIZE_BYTES, True)
    with files["model"].open("rb") as file:
        assert upload["sha256"] == hashlib.file_digest(file, "sha256").hexdigest()
    return str((caught.value.problem or {})["type"])


def as_a_form(server: UploadServer, files: dict[str, Path], _folder: Path) -> str:
    opened = {name: path.open("rb") for name, path in files.items()}
    try:
        answer = server.http.post(
            "/v1/models/toy/releases", data={"version": "1.0.0"}, files=opened, timeout=300
        )
    finally:
        for file in opened.values():
            file.close()
    assert answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY, answer.text
    return str(answer.json()["type"])


@pytest.mark.parametrize("send", [in_pieces, as_a_form])
def test_memory_while_half_a_gigabyte_arrives(
    server: UploadServer, big: Path, tmp_path: Path, send: Callable[..., str]
) -> None:
    examples = tmp_path / "examples.npz"
    examples.write_bytes(b"no examples")  # so that all of it is received, and nothing is staged
    files: dict[str, Any] = {"model": big, "calibration": examples, "golden": examples}
    rest_bytes = peak_bytes(server.process_id, anew=True)
    assert send(server, files, tmp_path).rsplit(":", 1)[1] == "not_npz"
    grown_bytes = peak_bytes(server.process_id) - rest_bytes
    assert grown_bytes < MOST_BYTES, f"{grown_bytes / 1e6:.0f} MB above its rest"
    assert server.incoming() == []

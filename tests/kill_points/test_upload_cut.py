"""Guards from an upload that is cut at any byte, or whose server is killed: it is gone on with.

A real server in a process of its own; the cuts are those of a raw socket, or of a proxy between
the command line and the server.
"""

from __future__ import annotations

import hashlib
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fleet_server.command_line.connection import Connection, Target
from fleet_server.command_line.uploading import send_release

pytestmark = pytest.mark.slow

DEADLINE_S = 60.0
DATA = bytes(range(251)) * 400
DIGEST = hashlib.sha256(DATA).hexdigest()


class Server:
    """A server that is started, killed and started again on the same folder and port."""

    def __init__(self, folder: Path, port: int) -> None:
        self.data_dir = folder / "data"
        self.port = port
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_S)
        words = ["--data-dir", str(self.data_dir), "server", "--port", str(port)]
        words += ["--device-port", "0", "--broker", "embedded", "--log-level", "error"]
        self._command = [sys.executable, "-m", "fleet_server.command_line", *words]
        self._log = folder / "server.out"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, cwd=Path(__file__).parents[2]
            )
        deadline_s = time.monotonic() + DEADLINE_S
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < deadline_s, "the server does not answer"
            time.sleep(0.05)
        self.http.headers["Authorization"] = f"Bearer {self.token}"

    def _answers(self) -> bool:
        try:
            return self.http.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def token(self) -> str:
        return (self.data_dir / "admin-token").read_text().strip()

    def end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(DEADLINE_S)

    def begin(self, data: bytes = DATA) -> str:
        digest = hashlib.sha256(data).hexdigest()
        body = {"field": "golden", "size_bytes": len(data), "sha256": digest}
        answer = self.http.post("/v1/uploads", json=body)
        assert answer.status_code in (200, 201), answer.text
        return answer.headers["location"]

    def offset(self, place: str) -> tuple[int, bool]:
        answer = self.http.head(place)
        assert answer.status_code == 204
        return int(answer.headers["upload-offset"]), answer.headers["upload-complete"] == "?1"

    def open_piece(self, place: str, offset: int, length: int) -> socket.socket:
        """Send the head of an append; the body is the caller's."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)
        lines = [
            f"PATCH {place} HTTP/1.1",
            "Host: server",
            f"Authorization: Bearer {self.token}",
            "Content-Type: application/partial-upload",
            f"Upload-Offset: {offset}",
            f"Content-Length: {length}",
        ]
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return sock

    def append(self, place: str, offset: int, data: bytes) -> httpx.Response:
        headers = {"Upload-Offset": str(offset), "Content-Type": "application/partial-upload"}
        return self.http.patch(place, content=data, headers=headers)

    def incoming(self) -> list[Path]:
        return list((self.data_dir / "incoming").iterdir())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = Server(tmp_path_factory.mktemp("server"), port)
    try:
        made.start()
        yield made
    finally:
        made.end(signal.SIGTERM)
        made.http.close()


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, len(DATA)), min_size=1, max_size=4))
def test_cut_at_any_byte(server: Server, cuts: list[int]) -> None:
    place = server.begin()
    try:
        for cut in sorted(cuts):
            offset, complete = server.offset(place)
            if complete:
                break
            sock = server.open_piece(place, offset, len(DATA) - offset)
            with closing(sock), suppress(ConnectionError):
                sock.sendall(DATA[offset : max(cut, offset)])
            after, complete = server.offset(place)
            assert offset <= after <= max(cut, offset)
            assert not complete or after == len(DATA)
        offset, complete = server.offset(place)
        if not complete:
            assert server.append(place, offset, DATA[offset:]).status_code == 204
        assert server.offset(place) == (len(DATA), True)
        assert server.append(place, 0, DATA).status_code == 409  # replayed
        assert server.incoming() == []
        assert server.http.get("/v1/models").json() == {"models": []}
    finally:
        assert server.http.delete(place).status_code == 204


def test_form_that_is_cut_leaves_nothing(server: Server) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="version"\r\n\r\n1.0.0\r\n'
        b'--x\r\nContent-Disposition: form-data; name="model"; filename="m"\r\n\r\n' + DATA
    )
    head = (
        "POST /v1/models/toy/releases HTTP/1.1\r\nHost: server\r\n"
        f"Authorization: Bearer {server.token}\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body) + 99}\r\n\r\n"
    ).encode()
    for cut in (0, 30, 100, 140, 200, len(body) // 2, len(body)):
        with closing(socket.create_connection(("127.0.0.1", server.port))) as sock:
            sock.sendall(head + body[:cut])
    deadline_s = time.monotonic() + DEADLINE_S
    while server.incoming():
        assert time.monotonic() < deadline_s, "files of a form that was cut stay"
        time.sleep(0.01)
    assert server.http.get("/v1/models").json() == {"models": []}


@pytest.mark.parametrize("sent", [1, len(DATA) // 2, len(DATA)])
def test_server_killed_in_the_middle(server: Server, sent: int) -> None:
    data = DATA + str(sent).encode()
    place = server.begin(data)
    with closing(server.open_piece(place, 0, len(data))) as sock:
        sock.sendall(data[:sent])
        server.end(signal.SIGKILL)
    server.start()
    assert server.begin(data) == place  # found again by its digest
    offset, complete = server.offset(place)
    assert offset <= sent
    assert not complete
    assert server.append(place, offset, data[offset:]).status_code == 204
    assert server.offset(place) == (len(data), True)
    assert server.http.delete(place).status_code == 204


@contextmanager
def cutting_proxy(port: int, cuts: list[int]) -> Iterator[int]:
    """A proxy that cuts its connections after so many bytes each; later ones are let through."""
    listener = socket.create_server(("127.0.0.1", 0))
    left = iter(cuts)
    threads: list[threading.Thread] = []

    def carry(source: socket.socket, target: socket.socket, most: int | None) -> None:
        carried = 0
        with suppress(OSError):
            while most is None or carried < most:
                data = source.recv(4096 if most is None else min(4096, most - carried))
                if not data:
                    break
                target.sendall(data)
                carried += len(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def join(client: socket.socket, most: int | None) -> None:
        with client, socket.create_connection(("127.0.0.1", port)) as upstream:
            back = threading.Thread(target=carry, args=(upstream, client, None))
            back.start()
            carry(client, upstream, most)
            back.join()

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threads.append(threading.Thread(target=join, args=(client, next(left, None))))
                threads[-1].start()

    threads.append(threading.Thread(target=serve))
    threads[0].start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(DEADLINE_S)
        listener.close()


def test_command_goes_on_by_itself(server: Server, tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("model", "calibration", "golden")}
    for number, path in enumerate(paths.values()):
        path.write_bytes(DATA * 3 + bytes([number]))
    said = io.StringIO()
    waits: list[float] = []
    # Three connections are cut: in the first, at the very first byte, and in the middle of one.
    with cutting_proxy(server.port, [20_000, 1, 150_000]) as port:
        connection = Connection(Target(f"http://127.0.0.1:{port}", server.token, tmp_path))
        with closing(connection):
            failed: Any = None
            try:
                send_release(
                    connection,
                    "toy",
                    {"version": "1.0.0"},
                    paths,
                    Console(file=said),
                    large_bytes=1,
                    sleep=waits.append,
                )
            except Exception as error:  # the examples are none, which is told at the end only
                failed = error
    assert "npz" in json.dumps(failed.problem), failed
    assert len(waits) >= 3, said.getvalue()
    assert "broken off at" in said.getvalue()
    uploads = server.http.get("/v1/uploads").json()["uploads"]
    assert [(item["field"], item["complete"]) for item in uploads] == [
        ("model", True),
        ("calibration", True),
        ("golden", True),
    ]
    for item in uploads:
        server.http.delete(f"/v1/uploads/{item['id']}")

"""A real server in a process of its own, and how a test sends it pieces of files."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

DEADLINE_S = 120.0
DATA = bytes(range(251)) * 400


class UploadServer:
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

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

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

"""The web server of a toy fleet: files with ranges, what exists, and answers to POST."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from tests.device_agent.shell.toy_fleet import ToyFleet


class Handler(BaseHTTPRequestHandler):
    """Serves ``fleet.files`` below /v1/store; ``fleet.misbehave`` may take a request over."""

    protocol_version = "HTTP/1.1"
    fleet: ClassVar[ToyFleet]

    def do_GET(self) -> None:
        fleet = self.server.fleet  # type: ignore[attr-defined]
        path = self.path.removeprefix("/v1/store/")
        fleet.requests.append((path, self.headers.get("Range")))
        misbehave = fleet.misbehave.get(path)
        if misbehave is not None and misbehave(self):
            self.close_connection = True
            return
        if self.path.startswith("/v1/trust/"):
            data = fleet.trust_file(self.path.removeprefix("/v1/trust/"))
            self.answer(*((404, b"{}") if data is None else (200, data)))
            return
        data = fleet.files.get(path.removeprefix("/v1/bench/files/"))
        if data is None:
            self.answer(404, b"{}")
            return
        wanted = self.headers.get("Range")
        if wanted is None:
            self.answer(200, data)
            return
        first = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if first >= len(data):
            self.answer(416, b"")
            return
        self.answer(
            206, data[first:], {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
        )

    def do_POST(self) -> None:
        fleet = self.server.fleet  # type: ignore[attr-defined]
        with fleet.changed:
            fleet.posts += 1
            fleet.changed.notify_all()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/v1/bench/"):
            self.answer(*fleet.bench_answer(self.path, body))
            return
        if self.path == "/v1/devices/renew":
            known = fleet.secure and self.connection.getpeercert(binary_form=True)
            self.answer(*(fleet.renewal_answer(body) if known else (401, b"{}")))
        else:
            self.answer(*fleet.enrolment_answer(body))

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hangs up is what some tests are about

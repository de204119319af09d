"""Guards from an upload that is cut at any byte, or whose server is killed: it is gone on with.

A real server in a process of its own; the cuts are those of a raw socket, or of a proxy between
the command line and the server.
"""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fleet_server.command_line.connection import Connection, Target
from fleet_server.command_line.uploading import send_release
from tests.kill_points.upload_server import DATA, DEADLINE_S, UploadServer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, pick_lasting_port: Callable[[], int]
) -> Iterator[UploadServer]:
    made = UploadServer(tmp_path_factory.mktemp("server"), pick_lasting_port())
    try:
        made.start()
        yield made
    finally:
        made.end(signal.SIGTERM)
        made.http.close()


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, len(DATA)), min_size=1, max_size=4))
def test_cut_at_any_byte(server: UploadServer, cuts: list[int]) -> None:
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
        while not complete:
            answer = server.append(place, offset, DATA[offset:])
            before, (offset, complete) = offset, server.offset(place)
            # What was on its way when the last connection was cut may arrive after the question;
            # then the sender asks again, and there is more each time.
            if answer.status_code != 204:
                assert answer.json()["type"].endswith(":wrong_offset"), answer.text
                assert offset > before
        assert server.offset(place) == (len(DATA), True)
        assert server.append(place, 0, DATA).status_code == 409  # replayed
        assert server.incoming() == []
        assert server.http.get("/v1/models").json() == {"models": []}
    finally:
        assert server.http.delete(place).status_code == 204


def test_form_that_is_cut_leaves_nothing(server: UploadServer) -> None:
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
def test_server_killed_in_the_middle(server: UploadServer, sent: int) -> None:
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


def test_command_goes_on_by_itself(server: UploadServer, tmp_path: Path) -> None:
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


def test_killed_command_goes_on_when_it_is_run_again(server: UploadServer, tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("model", "calibration", "golden")}
    for path in paths.values():
        path.write_bytes(DATA * 40)
    words = ["--data-dir", str(server.data_dir), "model", "push", "toy", str(paths["model"])]
    words += ["--calibration", str(paths["calibration"]), "--golden", str(paths["golden"])]
    words += ["--version", "1.0.0"]

    def push(port: int) -> subprocess.Popen[str]:
        url = ["--url", f"http://127.0.0.1:{port}"]
        return subprocess.Popen(
            [sys.executable, "-m", "fleet_server.command_line", *url, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    # 4,016,000 bytes are below the size that goes in pieces: a part more, and they are above.
    paths["model"].write_bytes(DATA * 50)
    with cutting_proxy(server.port, [3_000_000, *[0] * 50]) as port:
        doomed = push(port)
        place = ""
        deadline_s = time.monotonic() + DEADLINE_S
        while not place:
            assert time.monotonic() < deadline_s, "the upload did not begin"
            for item in server.http.get("/v1/uploads").json()["uploads"]:
                place = f"/v1/uploads/{item['id']}" if item["offset_bytes"] else ""
            time.sleep(0.01)
        doomed.kill()
        doomed.communicate()
    offset, _ = server.offset(place)
    assert 0 < offset < len(DATA) * 50
    again = push(server.port)
    _, err = again.communicate(timeout=DEADLINE_S)
    assert again.returncode == 1
    assert "were there already" in err
    assert "npz" in err
    assert server.offset(place) == (len(DATA) * 50, True)
    assert server.http.delete(place).status_code == 204

"""Archives that unpack to more than they are: refused by what they say, before they are unpacked.

Uploaded arrays are the only archives that the server opens; devices open none, and take no encoded
answer (tests/attacks/test_exchanged_on_the_way.py).
"""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from device_agent.shell.workshop import Workshop
from fleet_server.releases import archives, limits
from fleet_server.releases.states import Refusal
from tests.attacks.battlefield import Battlefield

LARGEST_BYTES = 48 * 1024 * 1024
"""What looking at a bomb may take of memory."""


def header(count: int) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count},), }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def packed(*members: tuple[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return made.getvalue()


def boast() -> bytes:
    """A few bytes that say that they are a terabyte."""
    data = bytearray(packed(("x.npy", header(4) + bytes(16))))
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 0xFFFF_FFFE)
    return bytes(data)


def nested() -> bytes:
    """An archive in an archive in an archive."""
    data = packed(("x.npy", bytes(10_000_000)))
    for _ in range(5):
        data = packed(("x.npy", data), ("y.npy", data))
    return data


def overlapping() -> bytes:
    """Many entries of the directory that all show the same long member."""
    data = packed(("a.npy", header(60_000_000) + bytes(240_000_000)))
    at = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry, tail = data[at:end], bytearray(data[end:])
    names = [b"%c.npy" % letter for letter in b"abcdefghijklmnop"]
    entries = b"".join(entry.replace(b"a.npy", name) for name in names)
    tail[8:12] = struct.pack("<HH", len(names), len(names))
    tail[12:16] = struct.pack("<I", len(entries))
    return data[:at] + entries + bytes(tail)


def long_directory() -> bytes:
    """A directory of entries for nothing: each becomes an object in memory."""
    data = packed(("a.npy", header(4) + bytes(16)))
    at = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entries, tail = data[at:end] * 400_000, bytearray(data[end:])
    tail[8:12] = struct.pack("<HH", 0xFFFE, 0xFFFE)
    tail[12:16] = struct.pack("<I", len(entries))
    return data[:at] + entries + bytes(tail)


BOMBS = pytest.mark.parametrize(
    ("bomb", "code"),
    [
        (boast, "arrays_too_large"),
        (nested, "not_npz"),
        (overlapping, "arrays_too_large"),
        (long_directory, "not_npz"),
    ],
    ids=["boast", "nested", "overlapping", "long directory"],
)


@BOMBS
def test_bomb_costs_little(tmp_path: Path, bomb: object, code: str) -> None:
    path = tmp_path / "bomb.npz"
    path.write_bytes(bomb())  # type: ignore[operator]
    tracemalloc.start()
    try:
        with pytest.raises(Refusal) as caught:
            archives.inspect(path, "golden")
        assert tracemalloc.get_traced_memory()[1] < LARGEST_BYTES
    finally:
        tracemalloc.stop()
    assert caught.value.problem.code == code


def test_archive_of_zeros_is_not_unpacked_to_be_inspected(tmp_path: Path) -> None:
    """Within the limits, so it is let in: but only its header was read until it is needed."""
    path = tmp_path / "zeros.npz"
    path.write_bytes(packed(("x.npy", header(25_000_000) + bytes(100_000_000))))
    tracemalloc.start()
    try:
        found = archives.inspect(path, "golden")
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert found["x"].shape == (25_000_000,)
    assert limits.ARRAYS_BYTES >= 100_000_000


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, workshop: Workshop) -> Iterator[Battlefield]:
    """A server without devices."""
    found = Battlefield(tmp_path_factory.mktemp("quiet"), workshop)
    found.start_server()
    yield found
    found.stop_server()


@pytest.mark.slow
@BOMBS
def test_bomb_uploaded_to_the_real_server(quiet: Battlefield, bomb: object, code: str) -> None:
    good = io.BytesIO()
    np.savez(good, x=np.zeros((32, 2), np.float32))
    files = {
        "model": ("m", b"a model"),
        "calibration": ("c", good.getvalue()),
        "golden": ("g", bomb()),  # type: ignore[operator]
    }
    answer = quiet.http.post("/v1/models/digits/releases", data={"version": "1.0.0"}, files=files)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["type"].endswith(f":{code}"), answer.text
    incoming = quiet.app.state.settings.data_dir / "incoming"
    assert not incoming.exists() or list(incoming.iterdir()) == []
    assert quiet.http.get("/v1/models").json()["models"] == []


@pytest.mark.slow
def test_encoded_request_body_is_not_unpacked(quiet: Battlefield) -> None:
    answer = quiet.http.post(
        "/v1/devices/tokens",
        content=b"\x1f\x8b" + bytes(100),
        headers={"Content-Encoding": "gzip", "Content-Type": "application/json"},
    )
    assert answer.status_code in (httpx.codes.BAD_REQUEST, 415, 422), answer.text

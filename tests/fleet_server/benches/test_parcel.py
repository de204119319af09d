"""Guards from serving what a child put in a candidate's place, and from filling a device."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet_contract import codec, limits
from fleet_contract.manifest import TensorData
from fleet_server.benches import parcel
from fleet_server.releases.timing import Unavailable


def test_files_are_copies_under_their_digests(make_heat: Any, tmp_path: Path) -> None:
    heat = make_heat(b"float", b"int8", b"int8")
    packed = parcel.pack(heat, tmp_path / "parcel")
    names = {path.name for path in (tmp_path / "parcel").iterdir()}
    assert names == {
        *(hashlib.sha256(data).hexdigest() for data in (b"float", b"int8")),
        packed.rows.digest,
    }
    for path in (tmp_path / "parcel").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        assert path.stat().st_nlink == 1
    assert packed.size_bytes == len(b"float") + len(b"int8") + packed.rows.size_bytes
    rows = codec.decode_msgpack(
        (tmp_path / "parcel" / packed.rows.digest).read_bytes(),
        list[TensorData],
        limit_bytes=limits.BENCH_ROWS_BYTES,
    )
    assert rows[0].shape == [parcel.ROWS, 4]
    read = np.frombuffer(rows[0].data, "<f4")
    assert np.array_equal(read, np.arange(parcel.ROWS * 4, dtype=np.float32))
    packed.remove()
    assert not (tmp_path / "parcel").exists()


def test_large_rows_are_fewer(make_heat: Any, tmp_path: Path) -> None:
    heat = make_heat(row_elements=limits.BENCH_ROWS_BYTES // 4 // 20)
    packed = parcel.pack(heat, tmp_path / "parcel")
    assert packed.rows.size_bytes < limits.BENCH_ROWS_BYTES
    assert packed.rows.size_bytes > limits.BENCH_ROWS_BYTES // 4


@pytest.mark.parametrize("what", ["a link", "another size", "a folder", "a row too large"])
def test_what_is_not_what_was_made_is_not_sent(make_heat: Any, tmp_path: Path, what: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"int8")
    heat = make_heat()
    candidate = heat.candidates[0].path
    if what == "a row too large":
        heat = make_heat(rows=2, row_elements=limits.BENCH_ROWS_BYTES // 4)
    elif what == "another size":
        candidate.write_bytes(b"int8 and more")
    else:
        candidate.unlink()
        if what == "a link":
            candidate.symlink_to(secret)
        else:
            candidate.mkdir()
    with pytest.raises(Unavailable):
        parcel.pack(heat, tmp_path / "parcel")
    assert not (tmp_path / "parcel").exists()


def test_more_than_a_device_fetches(make_heat: Any, tmp_path: Path) -> None:
    heat = make_heat()
    large = replace(heat.rival, size_bytes=limits.BENCH_BYTES)
    with pytest.raises(Unavailable, match="too large"):
        parcel.pack(replace(heat, rival=large), tmp_path / "parcel")
    many = list(heat.candidates) * limits.BENCH_CANDIDATES
    with pytest.raises(Unavailable, match="too many"):
        parcel.pack(replace(heat, candidates=many), tmp_path / "parcel")

"""Guards from npz files that execute code or eat the memory."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet_server.releases import archives, limits
from fleet_server.releases.states import Refusal


def _code(call: Any) -> str:
    with pytest.raises(Refusal) as caught:
        call()
    code: str = caught.value.problem.code
    return code


def _npy_header(shape: str, descr: str = "'<f4'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def test_pickled_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "a.npz"
    np.savez(path, image=np.array([Trap()], dtype=object))
    assert _code(lambda: archives.inspect(path, "golden")) == "pickled"
    assert _code(lambda: archives.load(path, "golden", ["image"])) == "pickled"
    assert not (tmp_path / "sprung").exists()


def test_zip_bomb_is_refused_by_what_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ARRAYS_BYTES", 10_000_000)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, image=np.zeros((1 << 22,), dtype=np.float32))
    assert path.stat().st_size < 100_000
    assert _code(lambda: archives.inspect(path, "golden")) == "arrays_too_large"


def test_zip_bomb_that_declares_too_little_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", _npy_header("(4194304,)") + bytes(1 << 24))
    data = bytearray(path.read_bytes())
    # The uncompressed size in the central directory, which is what zipfile goes by.
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 1_000)
    path.write_bytes(data)
    assert _code(lambda: archives.load(path, "golden", ["image"])) == "not_npz"


@pytest.mark.parametrize(
    "member",
    [
        pytest.param(_npy_header("(10,)") + bytes(39), id="too few numbers"),
        pytest.param(_npy_header("(10,)") + bytes(41), id="too many numbers"),
        pytest.param(_npy_header("(1000000000000, 1000000000000)"), id="absurd shape"),
        pytest.param(_npy_header("(-1, 4)") + bytes(16), id="negative shape"),
        pytest.param(_npy_header("(2,)", "'<U4'") + bytes(32), id="text"),
        pytest.param(_npy_header("(2,)", "__import__('os')") + bytes(8), id="code in the header"),
        pytest.param(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"x", id="endless header"),
        pytest.param(b"\x93NUMPY\x09\x00", id="unknown version"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_malformed_array(tmp_path: Path, member: bytes) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", member)
    assert _code(lambda: archives.inspect(path, "golden")) == "not_npz"


def test_malformed_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for data in (b"", b"PK", b"no zip at all", b"PK\x05\x06" + bytes(18)):
        path.write_bytes(data)
        assert _code(lambda: archives.inspect(path, "golden")) == "not_npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil.txt", b"x")
    assert _code(lambda: archives.inspect(path, "golden")) == "not_npz"


def test_damaged_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, image=np.arange(1000, dtype=np.float32))
    whole = path.read_bytes()
    for at in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            archives.load(path, "golden", ["image"])
        except Refusal as refusal:
            assert refusal.problem.code in {"not_npz", "arrays_too_large", "pickled"}


def test_numbers_come_out_as_they_went_in(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    plain = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    np.savez_compressed(path, a=plain, b=np.asfortranarray(plain), c=np.empty((0, 3)))
    found = archives.load(path, "golden", ["a", "b", "c"])
    np.testing.assert_array_equal(found["a"], plain)
    np.testing.assert_array_equal(found["b"], plain)
    assert found["c"].shape == (0, 3)

"""Guards from examples that fill the server's memory, or become others on their way in."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet_contract.manifest import TensorSpec
from fleet_server.releases import archives, examples, limits
from fleet_server.releases.states import Problem, Refusal

MIB = 1024**2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "golden.npz"


def _read(path: Path, spec: TensorSpec, most: int = limits.ROWS) -> Any:
    return examples.read_rows(path, "golden", [spec], least=1, most=most)[spec.name]


def _refused(path: Path, spec: TensorSpec) -> Problem:
    with pytest.raises(Refusal) as caught:
        _read(path, spec)
    return caught.value.problem


def test_small_upload_of_many_numbers_costs_no_memory(path: Path) -> None:
    np.savez_compressed(path, x=np.zeros((1 << 15, 1024), np.int8))
    assert path.stat().st_size < MIB
    tracemalloc.start()
    rows = _read(path, TensorSpec("x", "float32", [None, 1024]))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows.nbytes == 128 * MIB
    assert peak_bytes < 16 * MIB
    assert not rows.flags.writeable
    assert list(path.parent.iterdir()) == [path], "what it lies in has no name"


def test_rows_that_swell_in_the_models_type(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(path, x=np.ones((100, 50), np.int8))
    monkeypatch.setattr(limits, "ARRAYS_BYTES", 30_000)
    spec = TensorSpec("x", "float64", [None, 50])
    problem = _refused(path, spec)
    assert (problem.code, problem.figure, problem.bound) == ("arrays_too_large", 40_000, 30_000)
    assert len(_read(path, spec, most=50)) == 50, "rows that are not used do not count"


@pytest.mark.parametrize("order", ["C", "F"])
def test_first_rows_are_the_first_rows(path: Path, order: Any) -> None:
    sent = np.arange(600, dtype=">f8").reshape(20, 5, 6)
    np.savez(path, x=np.asarray(sent, order=order), y=np.zeros((3, 0)))
    np.testing.assert_array_equal(archives.load(path, "golden", ["x"], rows=7)["x"], sent[:7])
    found = archives.load(path, "golden", ["y", "x"])
    assert found["y"].shape == (3, 0)
    np.testing.assert_array_equal(found["x"], sent)


@pytest.mark.parametrize(
    ("sent", "dtype", "figure"),
    [
        (np.array([[1, 300]]), "uint8", 1),
        (np.array([[-1, -2]]), "uint16", 2),
        (np.array([[200, 1]], np.uint8), "int8", 1),
        (np.array([[1 << 40, 5]]), "int32", 1),
    ],
)
def test_whole_numbers_that_would_wrap_around(
    path: Path, sent: Any, dtype: str, figure: int
) -> None:
    np.savez(path, x=sent)
    spec = TensorSpec("x", dtype, [None, 2])
    problem = _refused(path, spec)
    if np.can_cast(sent.dtype, dtype, "same_kind"):
        assert (problem.code, problem.figure, problem.bound) == ("does_not_fit", figure, 0)
    else:
        assert problem.code == "wrong_shape"
    np.savez(path, x=np.array([[1, 100]], sent.dtype))
    if problem.code == "does_not_fit":
        assert _read(path, spec).tolist() == [[1, 100]]


def test_number_too_large_for_the_models_floats(path: Path) -> None:
    np.savez(path, x=np.array([[1.0, 1e300], [np.nan, 2.0]]))
    problem = _refused(path, TensorSpec("x", "float32", [None, 2]))
    assert (problem.code, problem.figure, problem.bound) == ("not_finite", 2, 0)


def test_number_that_is_no_row(path: Path) -> None:
    np.savez(path, x=np.float32(1))
    assert _refused(path, TensorSpec("x", "float32", [None])).code == "wrong_shape"


def test_one_row_many_times_over(path: Path) -> None:
    sent: Any = {"x": np.zeros((5_000, 3), np.float32), "y": np.arange(5_000) % 15}
    with pytest.raises(Refusal) as caught:
        examples.check_varied(sent, "golden", least=16)
    problem = caught.value.problem
    assert (problem.code, problem.figure, problem.bound) == ("rows_alike", 15, 16)
    examples.check_varied(sent, "golden", least=15)

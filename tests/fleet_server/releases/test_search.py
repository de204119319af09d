"""Guards from a search that ships what is small, fast and wrong, or small and slow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet_contract.manifest import Runtime, TensorSpec
from fleet_server.releases import limits
from fleet_server.releases.examples import Rows
from fleet_server.releases.laboratory.tasks import Build, Built, Race, Raced, RawTensor
from fleet_server.releases.search import Trial, search
from fleet_server.releases.states import OutputKind, Recipe, Refusal

OUTPUTS = [TensorSpec("logits", "float32", [None, 3])]
RIGHT: Rows = {"logits": np.eye(3, dtype=np.float32)[np.arange(30) % 3]}
WRONG: Rows = {"logits": np.roll(RIGHT["logits"], 1, axis=1)}
LARGE = limits.SEARCH_BYTES * 10


class _Laboratory:
    """Answers from a script: recipe → (bytes, microseconds, whether it is right)."""

    def __init__(self, script: dict[Recipe, tuple[int, float, bool]]) -> None:
        self.script = script
        self.hurting = "Mul"
        self.built: dict[str, tuple[float, bool]] = {}
        self.recipes: list[Recipe] = []

    def do(self, task: Any, kind: type, *, gate: str, folder: Path) -> Any:
        if isinstance(task, Race):
            return Raced(self.built[task.model][0], 1000.0, 5)
        assert isinstance(task, Build)
        self.recipes.append(task.recipe)
        if task.recipe not in self.script:
            raise Refusal(gate, "not_quantisable", "The model cannot be quantised: x.", "x")
        size_bytes, us, right = self.script[task.recipe]
        if task.recipe is Recipe.MIXED:
            right = self.hurting not in task.operators
        Path(task.target).write_bytes(bytes(size_bytes))
        self.built[task.target] = us, right
        return Built(size_bytes, 17, 8, ["Gemm"])

    def run(self, model: Path, *_: Any, **__: Any) -> Any:
        return RIGHT if self.built.get(str(model), (0.0, True))[1] else WRONG


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "model.onnx").write_bytes(b"float")

    def run(
        script: dict[Recipe, tuple[int, float, bool]],
        size_bytes: int = LARGE,
        runtime: Runtime = Runtime.ONNXRUNTIME,
    ) -> Any:
        laboratory: Any = _Laboratory(script)
        tensors = [RawTensor("x", "float32", [30, 4], "x")]
        trial = Trial(
            laboratory=laboratory,
            model=tmp_path / "model.onnx",
            built=Built(size_bytes, 17, 8, ["Conv", "Mul", "Add"], runtime),
            folder=tmp_path,
            calibration=tensors,
            golden=tensors,
            reference=RIGHT,
            outputs=OUTPUTS,
            kind=OutputKind.LOGITS,
            least_agreement=0.99,
            monotonic_ms=lambda: 0,
        )
        return search(trial), laboratory

    return run


def test_fastest_that_passes(find: Any) -> None:
    found, _ = find(
        {
            Recipe.STATIC: (30, 500.0, True),
            Recipe.DYNAMIC: (20, 400.0, True),
            Recipe.STATIC_ALL: (10, 100.0, False),
            Recipe.FLOAT16: (50, 900.0, True),
        }
    )
    assert (found.recipe, found.reason) == (Recipe.DYNAMIC, "")
    table = {row.recipe: row for row in found.candidates}
    assert [row.recipe for row in found.candidates if row.chosen] == ["dynamic"]
    assert not table["static-all"].passes
    assert table["static-all"].agreement == 0
    assert table["static-all"].latency_us is None, "what fails is not worth a race"
    assert (table["static"].latency_us, table["static"].float_latency_us) == (500.0, 1000.0)


def test_tflite_is_tried_with_what_its_quantiser_makes_and_each_once(find: Any) -> None:
    script = {Recipe.STATIC: (30, 500.0, False), Recipe.DYNAMIC: (20, 400.0, True)}
    found, laboratory = find(script, runtime=Runtime.LITERT)
    assert found.recipe is Recipe.DYNAMIC
    assert laboratory.recipes == [
        *(Recipe.STATIC, Recipe.DYNAMIC, Recipe.FLOAT16, Recipe.WEIGHTS),
    ]
    found, laboratory = find(script, limits.SEARCH_BYTES - 1, Runtime.LITERT)
    assert found.recipe is Recipe.DYNAMIC
    assert laboratory.recipes == [Recipe.STATIC, Recipe.DYNAMIC]


@pytest.mark.parametrize("candidate", [(30, 1000.5, True), (LARGE, 10.0, True)])
def test_slower_or_larger_than_float(find: Any, candidate: tuple[int, float, bool]) -> None:
    found, _ = find({Recipe.STATIC: candidate})
    assert found.recipe is Recipe.FLOAT
    assert found.artifact == b"float"
    assert "smaller and not slower" in found.reason


def test_operator_that_hurts_goes_back_to_float(find: Any) -> None:
    found, _ = find(
        {
            Recipe.STATIC: (30, 500.0, False),
            Recipe.STATIC_7BIT: (30, 500.0, False),
            Recipe.STATIC_ALL: (10, 100.0, False),
            Recipe.MIXED: (40, 600.0, True),
        }
    )
    assert found.recipe is Recipe.MIXED
    chosen = next(row for row in found.candidates if row.chosen)
    assert chosen.note.startswith("in float: Mul")
    assert "Conv" not in chosen.note


def test_int8_that_saves_next_to_nothing_does_not_end_the_search(find: Any) -> None:
    found, laboratory = find(
        {
            Recipe.STATIC: (LARGE * 99 // 100, 500.0, True),
            Recipe.MIXED: (40, 400.0, True),
        }
    )
    assert Recipe.MIXED in laboratory.recipes
    assert found.recipe is Recipe.MIXED


def test_overflow_at_full_range_is_tried_again_with_less(find: Any) -> None:
    script = {Recipe.STATIC: (30, 1.0, False), Recipe.STATIC_7BIT: (30, 1.0, True)}
    found, laboratory = find(script, size_bytes=1000)
    assert found.recipe is Recipe.STATIC_7BIT
    assert laboratory.recipes == [Recipe.STATIC, Recipe.STATIC_7BIT]


def test_small_model_gets_no_search(find: Any) -> None:
    found, laboratory = find({Recipe.STATIC: (3000, 9000.0, True)}, size_bytes=1000)
    assert found.recipe is Recipe.STATIC
    assert laboratory.recipes == [Recipe.STATIC]


def test_small_model_that_int8_breaks(find: Any) -> None:
    with pytest.raises(Refusal) as caught:
        find({Recipe.STATIC: (30, 1.0, False)}, size_bytes=1000)
    assert caught.value.problem.code == "parity_failed"


def test_model_that_quantising_does_not_help(find: Any) -> None:
    found, _ = find({})
    assert found.recipe is Recipe.FLOAT
    assert found.reason == "The model cannot be quantised: x."
    assert not any(row.passes for row in found.candidates)

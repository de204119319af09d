"""Guards from a search that ships what is small, fast and wrong, or small and slow."""

from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet_contract.manifest import Runtime, TensorSpec
from fleet_server.releases import limits
from fleet_server.releases.candidates import Trial
from fleet_server.releases.examples import Rows
from fleet_server.releases.laboratory.tasks import (
    Build,
    Built,
    Race,
    Raced,
    RawTensor,
    Survey,
    Surveyed,
)
from fleet_server.releases.search import search
from fleet_server.releases.states import NOT_THE_TARGET, OutputKind, Recipe, Refusal
from fleet_server.releases.timing import Choice, Heat, Place, Target, Unavailable

OUTPUTS = [TensorSpec("logits", "float32", [None, 3])]
RIGHT: Rows = {"logits": np.eye(3, dtype=np.float32)[np.arange(30) % 3]}
WRONG: Rows = {"logits": np.roll(RIGHT["logits"], 1, axis=1)}
LARGE = limits.SEARCH_BYTES * 10


class _Laboratory:
    """Answers from a script: recipe → (bytes, microseconds, whether it is right)."""

    def __init__(self, script: dict[Recipe, tuple[int, float, bool]], drifts: set[Recipe]) -> None:
        self.script = script
        self.drifts = drifts
        self.drifting: set[str] = set()
        self.hurting = "Mul"
        self.layers = ["a", "b", "c", "d", "e"]
        self.hurting_layers = {"c", "e"}
        self.built: dict[str, tuple[float, bool]] = {}
        self.recipes: list[Recipe] = []

    def do(self, task: Any, kind: type, *, gate: str, folder: Path) -> Any:
        if isinstance(task, Race):
            return Raced(self.built[task.model][0], 1000.0, 5)
        if isinstance(task, Survey):
            return Surveyed(self.layers)
        assert isinstance(task, Build)
        self.recipes.append(task.recipe)
        if task.recipe not in self.script:
            raise Refusal(gate, "not_quantisable", "The model cannot be quantised: x.", "x")
        size_bytes, us, right = self.script[task.recipe]
        if task.recipe is Recipe.MIXED:
            right = self.hurting not in task.operators
        if task.recipe is Recipe.MIXED_LAYERS:
            right = not self.hurting_layers & set(task.layers)
        Path(task.target).write_bytes(bytes(size_bytes))
        self.built[task.target] = us, right
        if task.recipe in self.drifts:
            self.drifting.add(task.target)
        return Built(size_bytes, 17, 8, ["Gemm"])

    def run(self, model: Path, *_: Any, states: Any = None, **__: Any) -> Any:
        if states and str(model) in self.drifting:
            return WRONG
        return RIGHT if self.built.get(str(model), (0.0, True))[1] else WRONG


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "model.onnx").write_bytes(b"float")

    def run(
        script: dict[Recipe, tuple[int, float, bool]],
        size_bytes: int = LARGE,
        drifts: set[Recipe] | None = None,
        runtime: Runtime = Runtime.ONNXRUNTIME,
        **options: Any,
    ) -> Any:
        laboratory: Any = _Laboratory(script, drifts or set())
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
            **options,
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
        *(Recipe.STATIC, Recipe.DYNAMIC, Recipe.FLOAT16, Recipe.WEIGHTS8),
    ]
    found, laboratory = find(script, limits.SEARCH_BYTES - 1, runtime=Runtime.LITERT)
    assert found.recipe is Recipe.DYNAMIC
    assert laboratory.recipes == [Recipe.STATIC, Recipe.DYNAMIC]


@pytest.mark.parametrize(
    "candidate", [(30, 1050.0, True), (LARGE, 10.0, True), (LARGE * 95 // 100, 900.0, True)]
)
def test_slower_or_larger_than_float(find: Any, candidate: tuple[int, float, bool]) -> None:
    found, _ = find({Recipe.STATIC: candidate})
    assert found.recipe is Recipe.FLOAT
    assert found.artifact.read_bytes() == b"float"
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


def test_layers_that_hurt_go_back_to_float(find: Any) -> None:
    found, _ = find(
        {
            Recipe.STATIC: (30, 500.0, False),
            Recipe.STATIC_7BIT: (30, 500.0, False),
            Recipe.MIXED: (LARGE * 95 // 100, 600.0, True),
            Recipe.MIXED_LAYERS: (LARGE // 3, 300.0, True),
        }
    )
    assert found.recipe is Recipe.MIXED_LAYERS
    chosen = next(row for row in found.candidates if row.chosen)
    assert chosen.note.startswith("in float: c (")
    assert "e (" in chosen.note
    assert "a (" not in chosen.note, "what does not hurt stays in int8"
    tried = [row for row in found.candidates if row.recipe == "mixed-layers"]
    assert any(not row.passes for row in tried), "fewer in float were tried"


def test_candidate_above_the_size_budget(find: Any) -> None:
    script = {Recipe.STATIC: (500, 100.0, True), Recipe.DYNAMIC: (90, 900.0, True)}
    found, _ = find(script, size_budget_bytes=100)
    assert found.recipe is Recipe.DYNAMIC
    static = next(row for row in found.candidates if row.recipe == "static")
    assert not static.passes
    assert "500 bytes; the budget is 100" in static.note


def test_budget_that_only_a_slow_candidate_keeps(find: Any) -> None:
    found, _ = find({Recipe.STATIC: (90, 2000.0, True)}, size_budget_bytes=100)
    assert found.recipe is Recipe.STATIC, "the float model is no choice"


@pytest.mark.parametrize("size_bytes", [1000, LARGE])
def test_budget_that_nothing_keeps(find: Any, size_bytes: int) -> None:
    with pytest.raises(Refusal) as caught:
        find({Recipe.STATIC: (500, 100.0, True)}, size_bytes=size_bytes, size_budget_bytes=100)
    problem = caught.value.problem
    assert (problem.gate, problem.code, problem.bound) == ("quantisation", "over_size_budget", 100)
    assert (problem.figure or 0) > 100


def test_right_step_by_step_and_wrong_in_sequence(find: Any) -> None:
    found, _ = find(
        {Recipe.STATIC: (30, 500.0, True), Recipe.DYNAMIC: (20, 400.0, True)},
        states={"s": "t"},
        followed=RIGHT,
        drifts={Recipe.DYNAMIC},
    )
    assert found.recipe is Recipe.STATIC
    table = {row.recipe: row for row in found.candidates}
    assert (table["dynamic"].agreement, table["dynamic"].sequence_agreement) == (1.0, 0.0)
    assert not table["dynamic"].passes
    assert "steps with its own states" in table["dynamic"].note
    assert table["static"].sequence_agreement == 1.0


def test_watcher_hears_what_is_tried(find: Any) -> None:
    heard: list[str] = []
    find({Recipe.STATIC: (30, 500.0, True)}, on_try=heard.append)
    assert heard[0] == "1 of 6: static int8"
    assert "4 of 6: static int8, all operators" in heard
    assert heard[-1] == "timing static int8 against float"


class _Benches:
    """A bench device on which candidates take other times, by the position in the job."""

    def __init__(self, *figures: float | str, why: str = "") -> None:
        self.figures = figures
        self.why = why
        self.targets: list[Target] = []
        self.heats: list[Heat] = []

    def choose(self, target: Target, _runtimes: Set[Runtime]) -> Choice:
        self.targets.append(target)
        return Choice("pi-1", "pi4") if not self.why else Choice(why=self.why)

    def time(self, device: str, heat: Heat, release: str) -> list[Raced | str]:
        assert (device, release) == ("pi-1", "toy 1.0.0")
        self.heats.append(heat)
        if not self.figures:
            raise Unavailable("it gave no result within 80 s")
        return [item if isinstance(item, str) else Raced(item, 1000.0, 9) for item in self.figures]


TWO = {Recipe.STATIC: (30, 500.0, True), Recipe.DYNAMIC: (20, 400.0, True)}


def test_bench_device_decides_which_is_fastest(find: Any) -> None:
    heard: list[str] = []
    benches = _Benches(200.0, 900.0)
    place = Place(benches, Target(named={"hardware": "pi4"}), "toy 1.0.0")
    found, _ = find(TWO, place=place, on_try=heard.append)
    assert found.recipe is Recipe.STATIC, "on the server the other one is faster"
    assert (found.times.device, found.times.why) == ("pi-1", "")
    timed = {row.recipe: row for row in found.candidates if row.latency_us is not None}
    assert {row.timed_on for row in timed.values()} == {"bench device pi-1 (hardware=pi4)"}
    assert timed["static"].latency_us == 200
    assert heard[-1] == "timing 2 candidates on bench device pi-1"
    assert benches.targets[0].named == {"hardware": "pi4"}
    (heat,) = benches.heats
    assert [item.size_bytes for item in heat.candidates] == [30, 20], "all in one job"


def test_candidate_that_does_not_run_on_the_bench_is_no_choice(find: Any) -> None:
    place = Place(_Benches(800.0, "broken_model: no such operator"), release="toy 1.0.0")
    found, _ = find(TWO, place=place)
    assert found.recipe is Recipe.STATIC
    dynamic = next(row for row in found.candidates if row.recipe == "dynamic")
    assert (dynamic.latency_us, dynamic.timed_on) == (None, "")
    assert dynamic.note == "not timed: broken_model: no such operator"


@pytest.mark.parametrize(
    ("benches", "why"),
    [
        (_Benches(), "bench device pi-1: it gave no result within 80 s"),
        (_Benches("a", "b"), "bench device pi-1 timed nothing: a"),
        (_Benches(why="no bench device is there"), "no bench device is there"),
    ],
)
def test_without_figures_of_a_bench_the_server_times_all(
    find: Any, benches: _Benches, why: str
) -> None:
    found, _ = find(TWO, place=Place(benches, release="toy 1.0.0"))
    assert found.recipe is Recipe.DYNAMIC
    assert (found.times.device, found.times.why) == ("", why)
    timed = [row for row in found.candidates if row.latency_us is not None]
    assert {row.timed_on for row in timed} == {NOT_THE_TARGET}


def test_of_candidates_as_fast_the_smallest(find: Any) -> None:
    script = {Recipe.STATIC: (500, 490.0, True), Recipe.WEIGHTS8: (90, 500.0, True)}
    assert find(script)[0].recipe is Recipe.WEIGHTS8
    script = {Recipe.STATIC: (500, 400.0, True), Recipe.WEIGHTS8: (90, 500.0, True)}
    assert find(script)[0].recipe is Recipe.STATIC


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

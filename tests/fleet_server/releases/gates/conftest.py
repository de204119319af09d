"""Evidence for the gates that all of them pass, to be spoilt; and a pipeline that stages."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet_contract.manifest import TensorSpec
from fleet_server.releases import pipeline
from fleet_server.releases.gates import table
from fleet_server.releases.gates.exercised import Exercised
from fleet_server.releases.gates.given import Given, SchemaChange
from fleet_server.releases.states import GateResult, Metric, OutputKind, Problem, Refusal, Step

SOUND = Exercised(
    rows=100,
    missing_finite=1.0,
    missing_finite_float=1.0,
    out_of_range_finite=1.0,
    corrupted_finite=1.0,
    flips=0.0,
    run_difference=0.0,
    session_difference=0.0,
    batch_difference=0.0,
)


def _given(**changes: Any) -> Given:
    rows = np.random.default_rng(1).normal(size=(1_000, 4)).astype(np.float32)
    fields: dict[str, Any] = {
        "kind": OutputKind.LOGITS,
        "outputs": [TensorSpec("logits", "float32", [None, 3])],
        "metric": Metric.ACCURACY,
        "metric_margin": None,
        "slice_margin": None,
        "calibration": {"x": rows},
        "baseline": {"x": rows},
        "states": frozenset(),
        "reference": None,
        "float_outputs": {"logits": np.zeros((4, 3), np.float32)},
        "evaluation": None,
        "cost": None,
        "exercise": SOUND,
        "schema": SchemaChange([], "", 1_000, 1_000),
        "metadata": {},
        "required_metadata": [],
        "custom": [],
        **changes,
    }
    return Given(**fields)


@pytest.fixture
def given() -> Callable[..., Given]:
    """Makes evidence; keyword arguments replace parts of it."""
    return _given


@pytest.fixture
def sound() -> Exercised:
    """What a model gives that takes everything."""
    return SOUND


@pytest.fixture
def refusal() -> Callable[..., Problem]:
    """What the gates refuse evidence with."""

    def judged(given: Given, overrides: dict[str, str] | None = None) -> Problem:
        with pytest.raises(Refusal) as caught:
            table.enforce(table.judge(given, overrides or {}))
        return caught.value.problem

    return judged


@pytest.fixture
def results() -> Callable[..., dict[str, GateResult]]:
    """The gates' results on evidence that passes, by the figures' names."""

    def judged(given: Given, overrides: dict[str, str] | None = None) -> dict[str, GateResult]:
        found = table.judge(given, overrides or {})
        table.enforce(found)
        return {result.name: result for result in found}

    return judged


class Staging:
    """Stages in the foreground; what passed last is production for the next."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.production: Any = None
        self.required: list[str] = []
        self.laboratory = bench.laboratory
        self.steps: list[Step] = []

    def __call__(self, version: str = "1.0.0", **given: Any) -> dict[str, GateResult]:
        """Stage, and return the gates' results by the figures' names.

        Raises:
            Refusal: as the pipeline does.
        """
        bench = self.bench
        self.steps = []
        job = bench.job(
            bench.upload(version, **given),
            previous=self.production,
            production=self.production,
            laboratory=self.laboratory,
            required_metadata=self.required,
        )
        self.production = pipeline.stage(job, self.steps.append).sealed.manifest
        return self.results()

    def results(self) -> dict[str, GateResult]:
        """What the gates of the last attempt found."""
        return {result.name: result for step in self.steps for result in step.gates}

    def refused(self, version: str = "1.0.0", **given: Any) -> Problem:
        """Stage what is refused, see to it that nothing of it is stored, and return why."""
        before = self.bench.stored()
        with pytest.raises(Refusal) as caught:
            self(version, **given)
        assert self.bench.stored() == before, "something of a refused release is in the store"
        return caught.value.problem


@pytest.fixture
def stage(bench: Any) -> Staging:
    """A pipeline over the bench."""
    return Staging(bench)


def _model(*nodes: onnx.NodeProto, **tensors: np.ndarray) -> bytes:
    first = [
        helper.make_node("IsNaN", ["features"], ["none"]),
        helper.make_node("Where", ["none", "usual", "features"], ["clean"]),
    ]
    weights = {"usual": np.zeros(1, np.float32), **tensors}
    graph = helper.make_graph(
        [*first, *nodes],
        "odd",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])],
        initializer=[numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


@pytest.fixture
def model() -> Callable[..., bytes]:
    """Makes a model of four columns from ``clean`` to ``logits``; no value is missing in clean."""
    return _model

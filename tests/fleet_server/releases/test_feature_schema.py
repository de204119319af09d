"""Guards from releases of one model that cannot be compared with each other."""

from typing import Any

import numpy as np
import pytest

from fleet_contract.features import FeatureSchema, Reduction
from fleet_contract.manifest import TensorSpec
from fleet_contract.sketches.features import FeatureBank
from fleet_server.releases import feature_schema, sealing
from fleet_server.releases.states import OutputKind, Refusal

TABLE = TensorSpec("sensor values", "float32", [None, 3])
IMAGE = TensorSpec("image", "uint8", [None, 1, 8, 8])
VECTOR = TensorSpec("embedding", "float32", [None, 64])
SCALAR = TensorSpec("Image", "float32", [None])
LOGITS = TensorSpec("logits", "float32", [None, 10])


def _rows(*specs: TensorSpec, rows: int = 60) -> dict[str, np.ndarray]:
    random = np.random.default_rng(2)
    return {
        spec.name: (random.random((rows, *(n or 1 for n in spec.shape[1:]))) * 200).astype(
            spec.dtype
        )
        for spec in specs
    }


def _build(inputs: list[TensorSpec], **given: Any) -> FeatureSchema:
    outputs = given.pop("outputs", [LOGITS])
    return feature_schema.build(
        inputs,
        outputs,
        kind=given.pop("kind", OutputKind.LOGITS),
        classes=given.pop("classes", []),
        baseline_inputs=_rows(*inputs),
        baseline_outputs=_rows(*outputs),
    )


def test_what_is_measured_of_each_kind_of_input() -> None:
    schema = _build([TABLE, IMAGE, VECTOR, SCALAR])
    summaries = ("mean", "deviation", "minimum", "maximum")
    assert schema.inputs.names() == [
        *(f"sensor_values_{column}" for column in range(3)),
        *(f"image_{name}" for name in summaries),
        *(f"embedding_{name}" for name in summaries),
        "image_0",
    ]
    assert schema.inputs.numeric[1].source.column == 1
    bank = FeatureBank(schema.inputs)
    bank.update(_rows(TABLE, IMAGE, VECTOR, SCALAR))
    assert all(sketch.finite == 60 for sketch in bank.sketches().numeric)


def test_what_is_measured_of_class_scores() -> None:
    schema = _build([TABLE])
    assert schema.outputs.names() == ["top_probability", "entropy", "margin", "class"]
    assert schema.outputs.categorical[0].vocabulary == list("0123456789")
    assert all(feature.source.logits for feature in schema.outputs.numeric)
    named = _build([TABLE], kind=OutputKind.PROBABILITIES, classes=list("abcdefghij"))
    assert named.outputs.categorical[0].vocabulary == list("abcdefghij")
    assert not any(feature.source.logits for feature in named.outputs.numeric)


def test_what_is_measured_of_plain_values() -> None:
    schema = _build([TABLE], kind=OutputKind.VALUES)
    assert [f.source.reduction for f in schema.outputs.numeric] == [Reduction.COLUMN] * 10
    assert schema.outputs.categorical == []


def test_second_output_is_measured_beside_the_scores() -> None:
    schema = _build([TABLE], outputs=[LOGITS, VECTOR])
    assert schema.outputs.names()[3:] == [
        *("embedding_mean", "embedding_deviation", "embedding_minimum", "embedding_maximum"),
        "class",
    ]


def test_names_that_differ_only_in_what_features_lack() -> None:
    specs = [TensorSpec(name, "float32", [None, 1]) for name in ("a b", "a_b", "1", "é")]
    names = _build(specs).inputs.names()
    assert len(set(names)) == 4


def test_description_that_no_device_would_read() -> None:
    """1,024 features a side are within the contract, and all of them are more than a manifest."""
    tables = [TensorSpec(f"table {number}", "float32", [None, 32]) for number in range(32)]
    schema = _build(tables, kind=OutputKind.VALUES, outputs=tables)
    baseline = sealing.sketch(schema, _rows(*tables), _rows(*tables))
    with pytest.raises(Refusal) as caught:
        sealing.check_size(schema, baseline)
    problem = caught.value.problem
    assert problem.code == "too_many_features"
    assert problem.figure and problem.bound and problem.figure > problem.bound
    sealing.check_size(_build([TABLE]), baseline)


@pytest.mark.parametrize(
    ("shape", "classes"),
    [([None, 1], []), ([None], []), ([None, 2, 2], []), ([None, 10], ["one", "two"])],
)
def test_scores_that_are_no_class_scores(shape: list[int | None], classes: list[str]) -> None:
    with pytest.raises(Refusal) as caught:
        _build([TABLE], outputs=[TensorSpec("logits", "float32", shape)], classes=classes)
    assert caught.value.problem.code == "wrong_classes"

"""Guards from a registry's facts that are taken over wrongly, or lost without a word."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fleet_contract import codec
from fleet_server.mlflow.lineage import lineage
from fleet_server.mlflow.registry import (
    Dataset,
    DatasetInput,
    Found,
    Metric,
    ModelVersion,
    Pair,
    Run,
    RunData,
    RunInfo,
    RunInputs,
)
from fleet_server.releases.metadata import Metadata


def _found(
    data: RunData | None = None, inputs: list[DatasetInput] | None = None, **info: Any
) -> Found:
    run = Run(RunInfo("0a1b", **info), data or RunData(), RunInputs(inputs or []))
    return Found("mlflow:models:/digits/3", "1/m", run, ModelVersion("digits", "3", "0a1b"))


def _read(said: dict[str, Any]) -> Metadata:
    """As the server reads it."""
    return msgspec.json.decode(codec.encode_json(said), type=Metadata)


def test_what_does_not_fit_is_named() -> None:
    data = RunData(
        [Pair("long", "x" * 501), Pair("odd\nname", "1"), Pair("depth", "4")],
        [Metric("auc", 0.9), Metric("loss", "NaN"), Metric("f1", float("inf"))],
    )
    inputs = [DatasetInput(Dataset("local", "ab12", '{"path": "data.csv"}'))]
    known = lineage(_found(data, inputs))
    assert known.metadata["hyperparameters"] == {"long": "x" * 500, "depth": "4"}
    assert known.metadata["metrics"] == {"auc": 0.9}
    assert (known.metadata["dataset_hash"], "datasets" in known.metadata) == ("local:ab12", False)
    text = " | ".join(known.left_out)
    for word in ("ends of 1 parameters", "1 of the parameters", "2 of the metrics", "'local'"):
        assert word in text


def test_data_set_of_the_training_is_the_one_that_counts() -> None:
    inputs = [
        DatasetInput(Dataset("test", "11", '{"uri": "s3://d/test"}')),
        DatasetInput(
            Dataset("train", "22", '{"url": "https://d/train"}'),
            [Pair("mlflow.data.context", "training")],
        ),
    ]
    known = lineage(_found(inputs=inputs)).metadata
    assert known["dataset_hash"] == "train:22"
    assert known["datasets"] == {"test": "s3://d/test", "train": "https://d/train"}


def test_run_that_has_not_ended_and_one_that_is_not_known() -> None:
    assert "training_ms" not in lineage(_found(start_time=5, end_time=0)).metadata
    assert lineage(_found(start_time=5, end_time=9)).metadata["training_ms"] == 4
    bare = Found("mlflow:models:/digits/3", "1/m", None, ModelVersion("digits", "3"))
    known = lineage(bare)
    assert known.metadata == {"imported_from": "mlflow:models:/digits/3"}
    assert len(known.left_out) == 1


pairs = st.lists(st.builds(Pair, st.text(max_size=300), st.text(max_size=600)), max_size=40)
metrics = st.lists(
    st.builds(Metric, st.text(max_size=300), st.floats() | st.text(max_size=5)), max_size=40
)
datasets = st.lists(
    st.builds(DatasetInput, st.builds(Dataset, st.text(), st.text(), st.text()), pairs), max_size=5
)


@given(
    origin=st.text(max_size=600),
    run=st.text(max_size=80),
    start=st.integers(-(2**62), 2**62),
    data=st.builds(RunData, pairs, metrics, pairs),
    inputs=datasets,
)
def test_whatever_a_registry_says_the_server_can_take(
    origin: str, run: str, start: int, data: RunData, inputs: list[DatasetInput]
) -> None:
    made_by = Run(RunInfo(run, "", start, 2**40), data, RunInputs(inputs))
    found = Found(origin, "1/m", made_by, ModelVersion("digits", "3", run, data.tags))
    _read(lineage(found).metadata)

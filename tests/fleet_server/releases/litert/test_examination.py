"""TFLite files: what is refused before anything runs, and that a broken file harms nobody."""

import random
from pathlib import Path
from typing import Any

import pytest

from fleet_contract.manifest import Runtime, TensorSpec
from fleet_server.releases.laboratory.laboratory import Laboratory
from fleet_server.releases.laboratory.tasks import Examine, Examined
from fleet_server.releases.litert.examination import examine
from fleet_server.releases.states import Refusal
from tests import toy_tflite


def test_a_good_file_is_described_by_its_signature() -> None:
    found = examine(toy_tflite.classifier())
    assert found.inputs == [TensorSpec("features", "float32", [None, 4])]
    assert found.outputs == [TensorSpec("scores", "float32", [None, 3])]
    assert found.operators == ["FULLY_CONNECTED", "SOFTMAX"]
    assert not found.quantised


def test_a_file_without_a_signature_is_described_by_its_tensors() -> None:
    found = examine(toy_tflite.classifier(signatures=0))
    assert [spec.name for spec in found.inputs] == ["serving_features:0"]


@pytest.mark.parametrize(
    ("made", "code"),
    [
        ({"custom": "Mine\x1b[31m"}, "custom_operator"),
        ({"operator": 148}, "foreign_operators"),  # draws random numbers
        ({"operator": 143}, "stateful"),
        ({"variable": True}, "stateful"),
        ({"external": True}, "external_data"),
        ({"signatures": 2}, "several_signatures"),
        ({"batch": 2}, "not_batch_first"),
        ({"name": "n" * 300}, "bad_name"),
        ({"name": "a\x1b[2J"}, "bad_name"),
    ],
)
def test_a_file_that_devices_cannot_run_is_refused(made: dict[str, Any], code: str) -> None:
    data = toy_tflite.classifier(**made)
    with pytest.raises(Refusal) as refused:
        examine(data)
    assert refused.value.problem.code == code
    assert refused.value.problem.detail.isprintable()


def test_the_content_tells_the_format_and_not_the_name(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    found = _try(laboratory, tmp_path, toy_tflite.classifier())
    assert (found.runtime, found.opset) == (Runtime.LITERT, 0)


def test_a_file_cut_anywhere_is_refused_and_the_server_lives(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    whole = toy_tflite.classifier()
    for size in (1, 7, 8, 12, 40, len(whole) // 2, len(whole) - 1):
        with pytest.raises(Refusal) as refused:
            _try(laboratory, tmp_path, whole[:size])
        assert refused.value.problem.gate in {"examination", "execution"}


@pytest.mark.slow
def test_a_file_with_flipped_bits_costs_a_child_at_most(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    whole, source = toy_tflite.classifier(), random.Random(4)
    codes = []
    for _ in range(40):
        broken = bytearray(whole)
        for _ in range(2):
            broken[source.randrange(len(broken))] ^= 1 << source.randrange(8)
        try:
            _try(laboratory, tmp_path, bytes(broken))
        except Refusal as refusal:
            codes.append(refusal.problem.code)
    assert len(codes) > 10  # what is left changed weights and names only
    _try(laboratory, tmp_path, whole)


def test_no_file_of_garbage_raises_anything_but_a_refusal() -> None:
    source = random.Random(5)
    for _ in range(300):
        with pytest.raises(Refusal):
            examine(source.randbytes(4) + b"TFL3" + source.randbytes(200))


def _try(laboratory: Laboratory, folder: Path, data: bytes) -> Examined:
    inner = folder / "inner"
    inner.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(data)
    task = Examine(str(folder / "model.onnx"))
    return laboratory.do(task, Examined, gate="examination", folder=inner)

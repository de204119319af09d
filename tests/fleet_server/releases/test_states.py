"""Guards from models with states that pass staging and do not run on a device."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from device_agent.inference.golden import difference, first_row, read_golden
from device_agent.inference.session import OnnxRuntime
from fleet_contract.manifest import artifact_path, manifest_path, read_manifest
from fleet_server.releases.states import Refusal

SAID = {
    "shapes": {"memory": [2, "n", 3]},
    "constants": {"rate": 2},
    "states": {"memory": "memory_after"},
}


@pytest.fixture
def given(recurrent: Any, npz: Any) -> dict[str, Any]:
    """An upload's parts: a walk of the model over 60 frames, states as it met them."""
    session = onnxruntime.InferenceSession(recurrent().SerializeToString())
    frames = np.random.default_rng(4).normal(size=(60, 1, 4)).astype(np.float32)
    memory = np.zeros((2, 1, 3), np.float32)
    met = []
    for frame in frames:
        met.append(np.moveaxis(memory, 1, 0)[0])
        given = {"frame": frame, "memory": memory, "rate": np.array(2, np.int64)}
        memory = np.asarray(session.run(["memory_after"], given)[0])
    rows = npz(frame=frames[:, 0], memory=np.stack(met))
    return {
        "model": recurrent().SerializeToString(),
        **dict.fromkeys(("calibration", "golden", "baseline"), rows),
        "output_kind": "values",
        "interface": SAID,
    }


def test_device_runs_what_was_staged(bench: Any, stage: Any, given: Any) -> None:
    staged, steps = stage(**given)
    root: Path = bench.folder / "store"
    data = (root / manifest_path("detector", staged.sealed.digest)).read_bytes()
    manifest = read_manifest(data, model="detector")
    assert manifest.states == {"memory": "memory_after"}
    assert [(s.name, s.shape) for s in manifest.inputs] == [
        ("frame", [None, 4]),
        ("memory", [None, 2, 3]),
    ]
    variant = manifest.variants[0]
    path = root / artifact_path("detector", variant.artifact.digest)
    session = OnnxRuntime().load(path, manifest, variant)
    golden = read_golden(
        (root / artifact_path("detector", manifest.golden.file.digest)).read_bytes()
    )
    assert difference(golden, session.run(golden.inputs), manifest.golden, None) is None
    # As an application does it: the state of one step is that of the next.
    inputs = first_row(golden, manifest)
    for _ in range(3):
        session.check(inputs)
        outputs = session.run(inputs)
        inputs |= {name: outputs[output] for name, output in manifest.states.items()}
    figures = {step.name: step.figures for step in steps}["parity"]
    assert figures["sequence_steps"] == 60
    assert figures["sequence_sqnr_db"] > 10


def test_model_that_the_file_leaves_open(bench: Any, stage: Any, given: Any) -> None:
    with pytest.raises(Refusal) as caught:
        stage(**given | {"interface": {}})
    problem = caught.value.problem
    assert (problem.gate, problem.code) == ("examination", "not_batch_first")
    assert "--shape" in problem.advice
    assert bench.stored() == []


def test_push_says_what_the_file_does_not(bench: Any, client: Any, push: Any, given: Any) -> None:
    words = {
        "output_kind": "values",
        "interface": json.dumps(SAID),
        "size_budget_bytes": "100000",
        "numpy": "1.26",
    }
    files = {name: part for name, part in given.items() if isinstance(part, bytes)}
    assert push(**files, **words).status_code == 202
    settled = bench.settled()
    assert settled.state == "staged", settled.problem
    assert settled.manifest.variants[0].requires.numpy == "1.26"


@pytest.mark.parametrize(
    "field",
    [
        {"interface": "{"},
        {"interface": '{"shapes": {"memory": [2, "m", 3]}}'},
        {"interface": '{"states": ["memory"]}'},
        {"interface": '{"other": {}}'},
        {"size_budget_bytes": "many"},
        {"size_budget_bytes": "0"},
        {"numpy": ">=2.0"},
    ],
)
def test_field_that_is_not_of_its_form(client: Any, push: Any, field: Any) -> None:
    response = push(**field)
    assert response.status_code == 422
    assert response.json()["type"].endswith(":bad_field")


def test_budget_that_nothing_keeps(bench: Any, push: Any) -> None:
    push(size_budget_bytes="100")
    problem = bench.settled().problem
    assert (problem.gate, problem.code, problem.bound) == ("quantisation", "over_size_budget", 100)
    assert problem.figure > 100
    assert bench.stored() == []

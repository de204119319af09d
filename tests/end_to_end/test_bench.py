"""A bench device times what is staged: a real server, ``device-agent bench``, and a real push."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.end_to_end.town import DEADLINE_S, SOURCES, Town, run, wait_until

pytestmark = pytest.mark.slow
WHERE = "bench device bench-1 (hardware=toaster)"


def network(*widths: int) -> bytes:
    """A classifier of random weights."""
    draw = np.random.default_rng(3)
    nodes, weights, last = [], [], "x"
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        drawn = draw.normal(size=(before, after)).astype(np.float32) / np.float32(before**0.5)
        weights.append(numpy_helper.from_array(drawn, f"w{number}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [f"h{number}"]))
        nodes.append(helper.make_node("Relu", [f"h{number}"], [f"r{number}"]))
        last = f"r{number}"
    nodes[-1] = helper.make_node("Identity", [f"h{len(widths) - 2}"], ["y"])
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", widths[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", widths[-1]])],
        weights,
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.fixture
def bench_town(tmp_path: Path, free_port: int) -> Iterator[Town]:
    town = Town(tmp_path, port=free_port, images=tmp_path / "none", broker="embedded")
    try:
        town.start()
        yield town
    finally:
        town.close()


@pytest.fixture
def bench(bench_town: Town, tmp_path: Path) -> Iterator[Path]:
    """What a bench device says that runs, in a file."""
    labels = ("--label", "hardware=toaster", "--label", "bench=yes")
    made = bench_town.edgefleet("device", "token", *labels, "--json")
    folder = ["--folder", str(tmp_path / "bench-1")]
    enrolled = run(
        "device_agent.command_line", "enroll", made.json["token"], "--name", "bench-1", *folder
    )
    assert enrolled.code == 0, enrolled
    said = tmp_path / "bench.out"
    with said.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "device_agent.command_line", "bench", *folder],
            stdout=out,
            stderr=out,
            cwd=SOURCES,
        )
    try:
        wait_until(lambda: "bench-1" in _there(bench_town), "the bench to ask for jobs")
        yield said
    finally:
        process.terminate()
        assert process.wait(DEADLINE_S) == 0, said.read_text()


def _there(town: Town) -> list[str]:
    listed = town.ask("GET", "/v1/benches")["benches"]
    return [item["device"] for item in listed if item["there"]]


def _push(town: Town, folder: Path, version: str, model: bytes) -> Any:
    (folder / "model.onnx").write_bytes(model)
    rows = np.random.default_rng(1).normal(size=(256, 64)).astype(np.float32)
    np.savez(folder / "rows.npz", x=rows)
    said = town.edgefleet(
        *("model", "push", "timed", str(folder / "model.onnx"), "--version", version),
        *("--calibration", str(folder / "rows.npz"), "--golden", str(folder / "rows.npz")),
        *("--agreement", "0.9", "--wait", "--json"),
    )
    return said.json


def test_candidates_and_the_latency_gate_are_timed_on_the_bench(
    bench_town: Town, bench: Path, tmp_path: Path
) -> None:
    first = _push(bench_town, tmp_path, "1.0.0", network(64, 1200, 10))
    step = next(item for item in first["steps"] if item["name"] == "quantisation")
    assert step["figures"]["timed_on"] == WHERE, (step, bench.read_text())
    timed = [row for row in step["candidates"] if row["latency_us"] is not None]
    assert timed
    assert {row["timed_on"] for row in timed} == {WHERE}
    shown = bench_town.edgefleet("model", "show", "timed", "1.0.0")
    assert f"timed on   {WHERE}" in shown.out
    card = bench_town.edgefleet("model", "card", "timed", "1.0.0")
    assert "Timed on bench device bench" in card.out, card
    second = _push(bench_town, tmp_path, "1.1.0", network(64, 10))
    gates = next(item for item in second["steps"] if item["name"] == "gates")["gates"]
    note = next(item["note"] for item in gates if item["gate"] == "latency")
    assert note.endswith(f"Measured on {WHERE}.")
    listed = bench_town.edgefleet("bench", "list", "--json").json["benches"]
    assert [(item["device"], item["jobs_done"]) for item in listed] == [("bench-1", 2)]
    assert "toaster" in bench_town.edgefleet("bench", "list").out
    assert bench.read_text().count(" timed") == 2
    audited = bench_town.ask("GET", "/v1/audit", params={"count": 200})
    assert "bench.result" in str(audited)

"""Guards from models that take the server with them, or its files."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet_server.releases import limits
from fleet_server.releases.laboratory import confinement
from fleet_server.releases.laboratory.laboratory import Closed, Laboratory, lay_out
from fleet_server.releases.laboratory.tasks import Allowance, Examine, Examined
from fleet_server.releases.states import Refusal

WAIT_S = 60.0
SMALL = Allowance(memory_bytes=1024**3, cpu_s=2, wall_s=30.0, file_bytes=1024**2)


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """An upload's folder, with the one that children write to in it."""
    (tmp_path / "half-made").mkdir()
    return tmp_path


@pytest.fixture
def examined(laboratory: Laboratory, room: Path) -> Callable[[bytes], Examined]:
    def run(data: bytes) -> Examined:
        path = room / "model.onnx"
        path.write_bytes(data)
        task = Examine(str(path))
        return laboratory.do(task, Examined, gate="examination", folder=room / "half-made")

    return run


def _graph(nodes: list[onnx.NodeProto], *weights: onnx.TensorProto) -> bytes:
    graph = helper.make_graph(
        nodes,
        "hostile",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        initializer=list(weights),
    )
    opsets = [helper.make_opsetid("", 17)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


def _refused(call: Callable[[], Any]) -> Any:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value.problem


def test_sound_model(examined: Any, classifier: Any) -> None:
    found = examined(classifier().SerializeToString())
    assert (found.opset, found.operators) == (17, ["Gemm"])
    assert found.inputs[0].shape == [None, 4]


def test_small_file_that_asks_for_fourteen_gigabytes(
    examined: Any, classifier: Any, laboratory: Laboratory
) -> None:
    size = numpy_helper.from_array(np.array([14 << 28], np.int64), "size")
    huge = _graph(
        [
            helper.make_node("ConstantOfShape", ["size"], ["big"]),
            helper.make_node("ReduceMax", ["big"], ["most"], keepdims=1),
            helper.make_node("Add", ["x", "most"], ["y"]),
        ],
        size,
    )
    assert len(huge) < 300
    problem = _refused(lambda: examined(huge))
    assert problem.code in {"does_not_run", "too_much_memory", "child_crashed"}
    assert laboratory.peak_bytes < limits.CHILD_MEMORY_BYTES
    assert examined(classifier().SerializeToString()), "the next model must not notice"


@pytest.fixture
def endless() -> bytes:
    """A model whose loop takes years."""
    condition = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go"]),
            helper.make_node("Identity", ["x_in"], ["x_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_in", TensorProto.FLOAT, ["n", 1]),
        ],
        [condition, helper.make_tensor_value_info("x_out", TensorProto.FLOAT, ["n", 1])],
    )
    return _graph(
        [helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=body)],
        numpy_helper.from_array(np.array(1 << 62, np.int64), "turns"),
        numpy_helper.from_array(np.array(True), "yes"),
    )


def test_model_that_never_ends(room: Path, endless: bytes) -> None:
    laboratory = Laboratory(SMALL)
    path = room / "model.onnx"
    path.write_bytes(endless)
    task = Examine(str(path))
    problem = _refused(
        lambda: laboratory.do(task, Examined, gate="examination", folder=room / "half-made")
    )
    laboratory.close()
    assert problem.code == "child_timed_out", problem


def test_helper_that_is_gone_is_started_again(
    examined: Any, classifier: Any, laboratory: Laboratory
) -> None:
    examined(classifier().SerializeToString())
    helper = laboratory._running()
    helper.kill()
    helper.wait()
    assert examined(classifier().SerializeToString()).opset == 17


def test_server_that_stops_refuses_no_model(room: Path, classifier: Any) -> None:
    laboratory = Laboratory(SMALL)
    laboratory.close()
    path = room / "model.onnx"
    path.write_bytes(classifier().SerializeToString())
    with pytest.raises(Closed):
        laboratory.do(Examine(str(path)), Examined, gate="x", folder=room / "half-made")


def test_outputs_are_those_of_the_model(
    laboratory: Laboratory, room: Path, classifier: Any, rows: Any, examined: Any
) -> None:
    model = classifier()
    spec = examined(model.SerializeToString()).outputs
    inputs = lay_out({"features": rows(10)}, room, "golden")
    results = laboratory.run(
        room / "model.onnx", inputs, spec, "float model", folder=room / "half-made"
    )
    weight = numpy_helper.to_array(model.graph.initializer[0])
    logits: Any = results["logits"]
    np.testing.assert_allclose(logits, rows(10) @ weight, rtol=1e-5)
    assert list((room / "half-made").iterdir()) == []


def test_child_reads_and_writes_only_its_own(room: Path, tmp_path_factory: Any) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("x")
    (room / "model.onnx").write_text("m")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        seen = ""
        try:
            if not confinement.confine(room / "half-made"):
                seen = "no landlock"
            else:
                seen += "r" if _can((room / "model.onnx").read_text) else "-"
                seen += "w" if _can(lambda: (room / "half-made" / "new").write_text("x")) else "-"
                seen += "!" if _can(secret.read_text) else "-"
                seen += "!" if _can(lambda: (room / "model.onnx").write_text("x")) else "-"
        finally:
            os.write(writer, seen.encode())
            os._exit(0)
    os.waitpid(child, 0)
    seen = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)
    if seen == "no landlock":
        pytest.skip("NOT AVAILABLE: this kernel has no Landlock")
    assert seen == "rw--"


def test_words_of_a_model_that_a_terminal_would_obey(examined: Any) -> None:
    node = helper.make_node("\x1b[2JSteal", ["x"], ["y"])
    problem = _refused(lambda: examined(_graph([node])))
    assert problem.code == "operator_not_allowed"
    assert problem.detail.isprintable()


def _children(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(number) for number in found.split()]


def _ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the latter if it goes while it is read
        return True
    return state == "Z"  # it holds nothing, and waits for whoever collects orphans


def _wait(reached: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if found := reached():
            return found
        time.sleep(0.01)
    pytest.fail(f"not reached after {WAIT_S} s")


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_child_that_outlives_the_server(room: Path, endless: bytes, how: str) -> None:
    laboratory = Laboratory(msgspec.structs.replace(SMALL, cpu_s=300, wall_s=300.0))
    path = room / "model.onnx"
    path.write_bytes(endless)
    problems: list[BaseException] = []

    def examine() -> None:
        try:
            laboratory.do(Examine(str(path)), Examined, gate="x", folder=room / "half-made")
        except (Closed, Refusal) as error:
            problems.append(error)

    asking = threading.Thread(target=examine)
    asking.start()
    helper = _wait(lambda: laboratory._helper)
    child = _wait(lambda: _children(helper.pid))[0]
    if how == "stopped":
        laboratory.close()
    else:
        helper.stdin.close()  # as the kernel does for a process that is gone
    _wait(lambda: _ended(child))
    asking.join(WAIT_S)
    laboratory.close()
    assert len(problems) == 1
    assert isinstance(problems[0], Closed) is (how == "stopped")


def test_answers_that_would_fill_the_disk(
    examined: Any, laboratory: Laboratory, room: Path, classifier: Any, rows: Any, monkeypatch: Any
) -> None:
    spec = examined(classifier().SerializeToString()).outputs
    inputs = lay_out({"features": rows(100)}, room, "golden")
    monkeypatch.setattr(limits, "CHILD_FILE_BYTES", 1_199)
    problem = _refused(
        lambda: laboratory.run(
            room / "model.onnx", inputs, spec, "float model", folder=room / "half-made"
        )
    )
    assert (problem.code, problem.figure, problem.bound) == ("outputs_too_large", 1_200, 1_199)


def _can(call: Callable[[], Any]) -> bool:
    try:
        call()
    except OSError:
        return False
    return True

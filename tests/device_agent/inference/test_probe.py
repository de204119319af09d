"""A hostile or broken artifact costs a child process, and is refused with the right reason."""

from __future__ import annotations

import faulthandler
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from device_agent.inference import probe_child
from device_agent.inference.probe import Prober
from device_agent.inference.probe_child import Verdict
from fleet_contract import codec
from fleet_contract.errors import Reason
from fleet_contract.manifest import FileRef, GoldenFile, TensorData


def probe(prober: Prober, release: Any) -> Verdict:
    return prober.probe(release.path, release.golden_path, release.manifest, release.variant)


def test_good_release_passes(prober: Prober, workshop: Any) -> None:
    assert probe(prober, workshop.good()) == Verdict(None, "")


def processor_s(pid: int) -> float:
    """What a process and the children that it waited for have taken of the processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def test_a_warm_probe_costs_a_fork_and_not_an_interpreter(prober: Prober, workshop: Any) -> None:
    """The processor's time is compared: the helper is nice, and others may be busy."""
    release = workshop.good()
    probe(prober, release)
    assert prober._helper is not None
    before = processor_s(prober._helper.pid)
    for _ in range(5):
        assert probe(prober, release).reason is None
    probes = processor_s(prober._helper.pid) - before
    before = processor_s(os.getpid())
    for _ in range(5):
        subprocess.run([sys.executable, "-c", "import onnxruntime"], check=True)
    interpreters = processor_s(os.getpid()) - before
    assert probes < interpreters


def test_model_that_asks_for_14_gigabytes_at_run(prober: Prober, workshop: Any) -> None:
    bomb = workshop.model(
        [
            helper.make_node("ConstantOfShape", ["s"], ["big"]),
            helper.make_node("ReduceSum", ["big"], ["r"], keepdims=0),
            helper.make_node("Add", ["x", "r"], ["y"]),
        ],
        {"s": np.array([60_000, 60_000], np.int64)},
        classes=4,
    )
    release = workshop.release(bomb)
    assert len(bomb) < 250
    verdict = probe(prober, release)
    assert verdict.reason in {Reason.BROKEN_MODEL, Reason.PROBE_CRASHED}
    assert probe(prober, workshop.good()).reason is None


def test_truncated_model(prober: Prober, workshop: Any) -> None:
    release = workshop.release(workshop.linear()[:-40])
    assert probe(prober, release).reason is Reason.BROKEN_MODEL


def test_artifact_replaced_after_the_download(prober: Prober, workshop: Any) -> None:
    release = workshop.good()
    release.path.write_bytes(workshop.linear(-1.0))
    assert probe(prober, release).reason is Reason.WRONG_HASH


def test_artifact_replaced_by_a_link(prober: Prober, workshop: Any) -> None:
    release = workshop.good()
    elsewhere = release.path.with_name("elsewhere")
    release.path.rename(elsewhere)
    release.path.symlink_to(elsewhere)
    assert probe(prober, release).reason is Reason.DOWNLOAD_FAILED


def test_silently_wrong_model(prober: Prober, workshop: Any) -> None:
    # Same architecture, other numbers: it loads and runs, only the golden vectors tell.
    release = workshop.release(workshop.linear(-1.0), workshop.rows[:, :3])
    verdict = probe(prober, release)
    assert verdict.reason is Reason.GOLDEN_MISMATCH
    assert "off by" in verdict.detail


def test_wrong_winning_classes_within_the_allowed_difference(prober: Prober, workshop: Any) -> None:
    weights = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32)
    expected = -(workshop.rows @ weights)
    release = workshop.release(workshop.linear(), expected, agreement=0.9, largest_difference=1e9)
    verdict = probe(prober, release)
    assert verdict.reason is Reason.GOLDEN_MISMATCH
    assert "winning class" in verdict.detail


def test_model_without_the_promised_output(prober: Prober, workshop: Any) -> None:
    other = workshop.model([helper.make_node("Identity", ["x"], ["y"])], classes=4)
    renamed = other.replace(b"\x01y", b"\x01z")
    assert probe(prober, workshop.release(renamed)).reason is Reason.BROKEN_MODEL


@pytest.mark.slow
def test_model_that_never_ends(workshop: Any) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["c"], ["c_out"]),
            helper.make_node("Identity", ["a"], ["a_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 4]),
        ],
        [
            helper.make_tensor_value_info("c_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a_out", TensorProto.FLOAT, ["n", 4]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["times", "go", "x"], ["end"], body=body),
            helper.make_node("MatMul", ["end", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [
            numpy_helper.from_array(np.array(2**62, np.int64), "times"),
            numpy_helper.from_array(np.array(True), "go"),
            numpy_helper.from_array(np.ones((4, 3), np.float32), "w"),
        ],
    )
    prober = Prober(timeout_s=1)
    try:
        verdict = probe(prober, workshop.release(workshop.pack(graph)))
        assert verdict.reason is Reason.PROBE_TIMED_OUT
        prober._timeout_s = 60  # for a good one, on a machine however busy
        assert probe(prober, workshop.good()).reason is None
    finally:
        prober.close()


@pytest.mark.slow
def test_helper_killed_between_two_probes(workshop: Any) -> None:
    prober = Prober(timeout_s=60)
    try:
        release = workshop.good()
        assert probe(prober, release).reason is None
        assert prober._helper is not None
        prober._helper.kill()
        prober._helper.wait()
        assert probe(prober, release).reason is None
    finally:
        prober.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_crash_of_the_child_is_a_verdict(workshop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(request: probe_child.ProbeRequest) -> Verdict:
        faulthandler.disable()  # pytest's would print where
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError("unreachable")

    monkeypatch.setattr(probe_child, "examine", crash)
    release = workshop.good()
    request = probe_child.ProbeRequest(
        str(release.path), str(release.golden_path), release.manifest, release.variant, 2**30, 60.0
    )
    verdict = probe_child._answer(request)
    assert verdict.reason is Reason.PROBE_CRASHED
    assert "SIGSEGV" in verdict.detail


@pytest.mark.parametrize(
    "tensor",
    [
        TensorData("x", "float32", [8, 4], b"\0" * 127),
        TensorData("x", "float32", [2**40, 2**40], b""),
        TensorData("x", "float32", [-8, -4], b"\0" * 128),
        TensorData("x", "object", [1], b"\0" * 8),
        TensorData("x", "(2)i4,O", [1], b"\0" * 8),
        TensorData("x", "float32", [1] * 9, b"\0" * 4),
        TensorData("x", "datetime64", [1], b"\0" * 8),
    ],
)
def test_golden_file_that_lies_about_its_tensors(
    prober: Prober, workshop: Any, tensor: TensorData
) -> None:
    release = workshop.good()
    data = codec.encode_msgpack(GoldenFile([tensor], [tensor]))
    release.golden_path.write_bytes(data)
    golden = msgspec.structs.replace(
        release.manifest.golden, file=FileRef(hashlib.sha256(data).hexdigest(), len(data))
    )
    manifest = msgspec.structs.replace(release.manifest, golden=golden)
    verdict = prober.probe(release.path, release.golden_path, manifest, release.variant)
    assert verdict.reason in {Reason.GOLDEN_MISMATCH, Reason.BROKEN_MODEL}

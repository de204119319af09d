"""What the slot, its checks and its sketches add to a prediction, on a real and on a tiny model.

Processor time of the calling thread is compared, which does everything itself: on a busy machine
the wall clock measures the neighbours.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from device_agent.inference.host import ModelHost
from device_agent.inference.probe import Prober
from device_agent.inference.session import OnnxRuntime
from tests.benchmarks.bench_models import bare_session, make_release, model_bytes
from tests.benchmarks.measurement import Measurement

ROUNDS = 12


def run() -> list[Measurement]:
    prober = Prober()
    try:
        bare, slot = _compare(prober, model_bytes(seed=1), calls=12)
        tiny_bare, tiny_slot = _compare(prober, _tiny(), calls=2_000)
    finally:
        prober.close()
    return [
        Measurement(
            "overhead.predict",
            slot,
            "CPU ms/call",
            "bare session.run",
            bare,
            largest_ratio=1.1,
        ),
        Measurement(
            "overhead.predict_tiny_model",
            tiny_slot * 1000,
            "CPU us/call",
            "bare session.run",
            tiny_bare * 1000,
        ),
        Measurement(
            "overhead.added",
            (tiny_slot - tiny_bare) * 1000,
            "CPU us/call",
            largest_value=50,
        ),
    ]


def _compare(prober: Prober, model: bytes, *, calls: int) -> tuple[float, float]:
    """Return milliseconds a call, bare and through the slot: medians of interleaved rounds. A
    round's mean counts, since the sketches of many calls are brought up to date in one of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        release = make_release(Path(folder), model)
        host = ModelHost(OnnxRuntime(), prober, ticks_ns=time.monotonic_ns)
        host.prepare(
            release.digest,
            release.manifest,
            release.variant,
            release.path,
            release.golden_path,
            now_ms=0,
        )
        host.activate(release.digest, now_ms=0)
    session, inputs = bare_session(model), release.inputs
    found: tuple[list[float], list[float]] = ([], [])
    for round_number in range(ROUNDS + 1):
        started = time.thread_time()
        for _ in range(calls):
            session.run(None, inputs)
        between = time.thread_time()
        for _ in range(calls):
            host.predict(inputs)
        ended = time.thread_time()
        if round_number:  # the first one warms caches
            found[0].append((between - started) * 1000 / calls)
            found[1].append((ended - between) * 1000 / calls)
    (window,) = host.collect(now_ms=1, close=True)
    assert window.predictions == (ROUNDS + 1) * calls and window.inputs is not None
    return statistics.median(found[0]), statistics.median(found[1])


def _tiny() -> bytes:
    head = np.random.default_rng(0).random((64, 10)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["logits"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(head, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())

"""What a swap does to the predictions that run meanwhile, against the same load without swaps.

Two threads predict at a steady pace. The naive way (a lock around the session, reloaded in place)
is measured beside it, so that the figure can be judged.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from device_agent.inference.host import ModelHost
from device_agent.inference.probe import Prober
from device_agent.inference.session import OnnxRuntime
from tests.benchmarks.bench_models import BenchRelease, bare_session, make_release, model_bytes
from tests.benchmarks.measurement import Measurement

ROUNDS = 4
SWAPS = 3
THREADS = 2
INTERVAL_S = 0.01
STEADY_S = 1.0


class Load:
    """Threads that predict at a steady pace and note how long each answer took."""

    def __init__(self, predict: Callable[[], Any]) -> None:
        self._predict = predict
        self._stop = threading.Event()
        self.latencies_ms: list[float] = []
        self.failed = 0
        self._threads = [threading.Thread(target=self._work) for _ in range(THREADS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        due = time.perf_counter()
        while not self._stop.is_set():
            started = time.perf_counter()
            try:
                self._predict()
            except Exception:
                self.failed += 1
            ended = time.perf_counter()
            self.latencies_ms.append((ended - started) * 1000)
            due = max(due + INTERVAL_S, ended)
            time.sleep(due - ended)


def run() -> list[Measurement]:
    with tempfile.TemporaryDirectory() as folder:
        releases = [make_release(Path(folder), model_bytes(seed, side=96)) for seed in (1, 2)]
        if releases[0].digest == releases[1].digest:  # a model from outside: change its last byte
            releases[1] = make_release(Path(folder), _renamed(releases[0].path.read_bytes()))
        return _measure(releases)


def _measure(releases: list[BenchRelease]) -> list[Measurement]:
    inputs = releases[0].inputs
    prober = Prober()
    prober.start()
    host = ModelHost(OnnxRuntime(), prober, ticks_ns=time.monotonic_ns)
    _swap(host, releases[0])
    steady: list[float] = []
    swapping: list[float] = []
    reloading: list[float] = []
    failed = total = 0
    swap_ms: list[float] = []
    naive = _LockAndReload(releases[0])
    try:
        for _ in range(ROUNDS):
            with Load(lambda: host.predict(inputs)) as load:
                time.sleep(STEADY_S)
            steady += load.latencies_ms
            failed, total = failed + load.failed, total + len(load.latencies_ms)
            with Load(lambda: host.predict(inputs)) as load:
                for number in range(1, SWAPS + 1):
                    swap_ms.append(_swap(host, releases[number % 2]))
                    host.drop_standby()
            swapping += load.latencies_ms
            failed, total = failed + load.failed, total + len(load.latencies_ms)
            with Load(lambda: naive.predict(inputs)) as load:
                for number in range(1, SWAPS + 1):
                    naive.reload(releases[number % 2])
            reloading += load.latencies_ms
    finally:
        prober.close()
    p99_steady, p99_swapping, p99_reloading = (
        float(np.percentile(latencies, 99)) for latencies in (steady, swapping, reloading)
    )
    return [
        Measurement(
            "swap.p99", p99_swapping, "ms", "p99 without swaps", p99_steady, largest_ratio=2.0
        ),
        Measurement(
            "swap.p99_lock_and_reload", p99_reloading, "ms", "p99 without swaps", p99_steady
        ),
        Measurement("swap.failed_inferences", failed, "calls", "all calls", total, largest_value=0),
        Measurement("swap.probe_build_exchange", float(np.median(swap_ms)), "ms"),
    ]


def _swap(host: ModelHost, release: BenchRelease) -> float:
    started = time.perf_counter()
    host.prepare(
        release.digest,
        release.manifest,
        release.variant,
        release.path,
        release.golden_path,
        now_ms=0,
    )
    host.activate(release.digest, now_ms=0)
    return (time.perf_counter() - started) * 1000


class _LockAndReload:
    """The naive way: one session behind a lock, replaced in place."""

    def __init__(self, release: BenchRelease) -> None:
        self._lock = threading.Lock()
        self.reload(release)

    def predict(self, inputs: dict[str, Any]) -> Any:
        with self._lock:
            return self._session.run(None, inputs)

    def reload(self, release: BenchRelease) -> None:
        with self._lock:
            self._session = bare_session(release.path.read_bytes())
            self._session.run(None, release.inputs)


def _renamed(model: bytes) -> bytes:
    import onnx

    changed = onnx.load_from_string(model)
    changed.doc_string += " "
    return bytes(changed.SerializeToString())

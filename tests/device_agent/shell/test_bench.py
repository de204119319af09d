"""Guards a device on a bench: it runs what was signed for it, once, and keeps nothing of it."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from device_agent.errors import NotEnrolled, StartFailed
from device_agent.inference.capabilities import capabilities
from device_agent.shell import races
from device_agent.shell.bench import Bench
from device_agent.shell.clock import SystemClock
from device_agent.shell.http_source import Canceled
from device_agent.shell.identity import enrol
from device_agent.shell.store import Store
from fleet_contract import codec, limits
from fleet_contract.errors import Reason
from fleet_contract.manifest import FileRef, Runtime, TensorData, TensorSpec
from fleet_contract.messages.bench import BenchPoll, BenchResult, read_poll, read_result
from fleet_contract.trust.bench import BENCH_JOB_TYPE, BenchJob, Entrant
from fleet_contract.trust.keyset import KEYSET_PATH
from tests import toy_tflite
from tests.device_agent.shell.toy_fleet import DEVICE, FLEET, ToyFleet, folder_of

INPUTS = [TensorSpec("x", "float32", [None, 4])]
OUTPUTS = [TensorSpec("y", "float32", [None, 3])]
ROWS = np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32)
JOB_LIFE_MS = 3_600_000
RESULT_S = 180.0
"""Each candidate of a job starts a process, which has half a minute for that."""
replace = msgspec.structs.replace


def linear(scale: float) -> bytes:
    """An ONNX model from x [n, 4] to y [n, 3]."""
    weights = numpy_helper.from_array(np.full((4, 3), scale, np.float32), "w")
    return _pack([helper.make_node("MatMul", ["x", "w"], ["y"])], [weights])


def endless() -> bytes:
    def value(name: str, kind: int, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    flag: Any = (TensorProto.BOOL, [])
    rows: Any = (TensorProto.FLOAT, ["n", 4])
    body = helper.make_graph(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("c", "a")],
        "body",
        [value("i", TensorProto.INT64, []), value("c", *flag), value("a", *rows)],
        [value("c_out", *flag), value("a_out", *rows)],
    )
    return _pack(
        [
            helper.make_node("Loop", ["times", "go", "x"], ["end"], body=body),
            helper.make_node("MatMul", ["end", "w"], ["y"]),
        ],
        [
            numpy_helper.from_array(np.array(2**62, np.int64), "times"),
            numpy_helper.from_array(np.array(True), "go"),
            numpy_helper.from_array(np.ones((4, 3), np.float32), "w"),
        ],
    )


def _pack(nodes: list[Any], weights: list[Any]) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    return bytes(model.SerializeToString())


class Server:
    """The server's side of benches, on a toy fleet."""

    def __init__(self, fleet: ToyFleet) -> None:
        self.fleet = fleet
        self.waiting: list[bytes] = []
        self.polls: list[BenchPoll] = []
        self.results: dict[int, BenchResult] = {}
        fleet.bench_answer = self._answer

    def file(self, data: bytes) -> FileRef:
        digest = hashlib.sha256(data).hexdigest()
        self.fleet.files[digest] = data
        return FileRef(digest, len(data))

    def job(self, *candidates: bytes, runtime: Runtime = Runtime.ONNXRUNTIME) -> BenchJob:
        now_ms = self.fleet.now_ms()
        rival, *others = [
            Entrant(runtime, self.file(data)) for data in (candidates[-1], *candidates)
        ]
        rows = [TensorData("x", "float32", list(ROWS.shape), ROWS.tobytes())]
        return BenchJob(
            *(FLEET, DEVICE, now_ms, self.fleet.generation, now_ms, now_ms + JOB_LIFE_MS),
            *(rival, others, self.file(codec.encode_msgpack(rows)), INPUTS, OUTPUTS, 20),
        )

    def seal(self, job: BenchJob) -> bytes:
        return self.fleet.seal(BENCH_JOB_TYPE, job, self.fleet.director)

    def send(self, data: bytes) -> None:
        self.waiting.append(data)

    def wait_for_result(self, job: BenchJob) -> BenchResult:
        self.fleet.wait_until(lambda: job.number in self.results, RESULT_S)
        return self.results[job.number]

    def wait_for_refusal(self) -> str:
        self.fleet.wait_until(lambda: any(poll.refusal for poll in self.polls))
        return next(poll.refusal for poll in self.polls if poll.refusal)

    def fetched(self) -> list[str]:
        return [path for path, _ in self.fleet.requests if path.startswith("/v1/bench/files/")]

    def _answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        with self.fleet.changed:
            self.fleet.changed.notify_all()
            if path.endswith("/result"):
                self.results[int(path.split("/")[-2])] = read_result(body)
                return 200, b"{}"
            self.polls.append(read_poll(body))
            if self.waiting:
                return 200, self.waiting.pop(0)
        time.sleep(0.05)
        return 204, b""


@pytest.fixture
def server(web: ToyFleet) -> Server:
    return Server(web)


@pytest.fixture
def folder(web: ToyFleet, tmp_path: Path) -> Path:
    enrol(Store(tmp_path / "device"), web.token(), DEVICE, capabilities(), SystemClock())
    return tmp_path / "device"


@pytest.fixture
def said(folder: Path, server: Server) -> Iterator[list[str]]:
    """What a bench that runs says."""
    lines: list[str] = []
    bench = Bench(Store(folder, reserve_bytes=0), SystemClock(), lines.append)
    thread = threading.Thread(target=bench.run)
    thread.start()
    yield lines
    bench.stop()
    thread.join(60)
    assert not thread.is_alive()
    bench.close()


def test_candidates_are_timed_against_the_rival_and_deleted(
    server: Server, said: list[str], folder: Path
) -> None:
    job = server.job(linear(1.0), b"no model at all", linear(2.0))
    server.send(server.seal(job))
    result = server.wait_for_result(job)
    assert result.reason is None
    first, broken, last = result.timed
    for timed, entrant in zip(result.timed, job.candidates, strict=True):
        assert timed.digest == entrant.artifact.digest
    for timed in (first, last):
        assert timed.reason is None, timed.detail
        assert timed.rounds >= 5
        assert 0 < timed.candidate_us <= timed.candidate_wall_us * 1.5 + 100
        assert timed.rival_us > 0
    assert (broken.reason, broken.candidate_us) == (Reason.BROKEN_MODEL, 0.0)
    server.polls.clear()
    server.fleet.wait_until(lambda: bool(server.polls))
    assert not {name for name in folder_of(folder / "bench") if "/" in name}
    assert server.polls[-1].done == job.number
    assert "onnxruntime" in server.polls[-1].capabilities.runtimes
    assert [line for line in said if "2 timed; " in line]


def test_tflite_is_timed(server: Server, said: list[str]) -> None:
    models = [toy_tflite.classifier(name="x", answer="y", hidden=hidden) for hidden in (0, 8)]
    job = server.job(*models, runtime=Runtime.LITERT)
    server.send(server.seal(job))
    assert [item.reason for item in server.wait_for_result(job).timed] == [None, None], said


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fleet": "away"}, "wrong_audience"),
        ({"device": "device-2"}, "wrong_audience"),
        ({"expires_ms": 1}, "expired"),
        ({"generation": 0}, "old_generation"),
        ({"rows": FileRef("c" * 64, limits.BENCH_ROWS_BYTES + 1)}, "too_large"),
    ],
)
def test_job_that_is_not_for_this_device_now_is_refused(
    server: Server, said: list[str], changes: dict[str, Any], reason: str
) -> None:
    server.send(server.seal(replace(server.job(linear(1.0)), **changes)))
    assert server.wait_for_refusal().startswith(reason)
    assert not server.fetched()
    assert any(line.startswith("refused a job") for line in said)


def test_unsigned_job_is_refused(server: Server, said: list[str]) -> None:
    sealed = msgspec.json.decode(server.seal(server.job(linear(1.0))))
    sealed["signatures"] = []
    server.send(msgspec.json.encode(sealed))
    assert server.wait_for_refusal().startswith("unknown_key"), said
    assert not server.fetched()


def test_job_is_done_once(server: Server, said: list[str], folder: Path) -> None:
    job = server.job(linear(1.0))
    server.send(server.seal(job))
    server.wait_for_result(job)
    server.send(server.seal(job))
    assert server.wait_for_refusal().startswith("old_epoch"), said
    assert (folder / "bench" / "done").read_text() == str(job.number)


def test_key_of_the_next_generation_is_looked_up(server: Server, said: list[str]) -> None:
    server.fleet.generation = 2
    server.fleet.catalogue.publish_document(KEYSET_PATH, server.fleet.keyset())
    job = server.job(linear(1.0))
    server.send(server.seal(job))
    assert server.wait_for_result(job).reason is None, said


def test_file_with_another_content_ends_the_job(server: Server, said: list[str]) -> None:
    job = server.job(linear(1.0))
    digest = job.candidates[0].artifact.digest
    server.fleet.files[digest] = bytes(job.candidates[0].artifact.size_bytes)
    server.send(server.seal(job))
    result = server.wait_for_result(job)
    assert (result.reason, result.timed) == (Reason.WRONG_HASH, []), said


def test_file_that_is_longer_than_announced_ends_the_job(server: Server, said: list[str]) -> None:
    job = server.job(linear(1.0))
    server.fleet.files[job.candidates[0].artifact.digest] += b"more"
    server.send(server.seal(job))
    assert server.wait_for_result(job).reason is Reason.WRONG_SIZE, said


def _laid_out(server: Server, job: BenchJob, folder: Path) -> Path:
    folder.mkdir()
    for digest in job.files():
        (folder / digest).write_bytes(server.fleet.files[digest])
    return folder


@pytest.mark.slow
def test_model_that_never_ends_costs_its_child(server: Server, tmp_path: Path) -> None:
    job = server.job(endless(), linear(1.0))
    folder = _laid_out(server, job, tmp_path / "files")
    timed = races.race_one(job, job.candidates[0], folder, lambda: False, load_s=2.0)
    assert timed.reason is Reason.PROBE_TIMED_OUT
    assert races.race_one(job, job.candidates[1], folder, lambda: False).reason is None


def test_crash_of_the_child_is_the_candidates(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = server.job(linear(1.0))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    timed = races.race_one(job, job.candidates[0], tmp_path, lambda: False)
    assert timed.reason is Reason.PROBE_CRASHED
    assert "exit status 1" in timed.detail


def test_stop_ends_a_race(server: Server, tmp_path: Path) -> None:
    job = server.job(endless(), linear(1.0))
    folder = _laid_out(server, job, tmp_path / "files")
    with pytest.raises(Canceled):
        races.race_one(job, job.candidates[0], folder, lambda: True)


def test_stop_in_the_middle_of_a_job_is_told(server: Server, folder: Path) -> None:
    bench = Bench(Store(folder, reserve_bytes=0), SystemClock(), lambda _: None)
    job = server.job(endless(), linear(1.0))
    rows = f"/v1/bench/files/{job.rows.digest}"

    def stop(_: Any) -> bool:
        bench.stop()
        return False

    server.fleet.misbehave[rows] = stop
    server.send(server.seal(job))
    bench.run()
    bench.close()
    assert server.results[job.number].reason is Reason.CANCELED
    assert not {name for name in folder_of(folder / "bench") if "/" in name}


def test_folder_of_an_agent_that_runs_is_left_alone(folder: Path) -> None:
    bench = Bench(Store(folder), SystemClock(), print)
    with pytest.raises(StartFailed, match="in use"):
        Bench(Store(folder), SystemClock(), print)
    bench.close()
    Bench(Store(folder), SystemClock(), print).close()


def test_certificate_is_shown_over_https(secure_web: ToyFleet, tmp_path: Path) -> None:
    server = Server(secure_web)
    store = Store(tmp_path / "device", reserve_bytes=0)
    enrol(store, secure_web.token(), DEVICE, capabilities(), SystemClock())
    bench = Bench(store, SystemClock(), lambda _: None)
    thread = threading.Thread(target=bench.run)
    thread.start()
    try:
        job = server.job(linear(1.0))
        server.send(server.seal(job))
        assert server.wait_for_result(job).timed[0].reason is None
    finally:
        bench.stop()
        thread.join(60)
        assert not thread.is_alive()
        bench.close()


def test_device_that_is_in_no_fleet(tmp_path: Path) -> None:
    with pytest.raises(NotEnrolled):
        Bench(Store(tmp_path), SystemClock(), print)

"""Small models, their example data, and a server without a broker, for the tests of releases."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleet_server.access import service as access
from fleet_server.access.admission import Admission
from fleet_server.app import create_app
from fleet_server.clock import SystemClock
from fleet_server.data_folder import TOKEN_FILE
from fleet_server.database import Database
from fleet_server.provenance.policy import Policy
from fleet_server.provenance.statement import Attester
from fleet_server.releases import pipeline, service
from fleet_server.releases.bench import Job
from fleet_server.releases.laboratory.laboratory import Laboratory
from fleet_server.releases.pipeline import Staged
from fleet_server.releases.records import ReleaseRecord
from fleet_server.releases.resumable import ResumableUploads
from fleet_server.releases.staging import Staging
from fleet_server.releases.states import Step
from fleet_server.releases.store import Store
from fleet_server.releases.uploads import FILES, Options, Upload
from fleet_server.settings import Settings
from fleet_server.trust.authority.authority import Authority
from fleet_server.trust.catalogue.repository import Catalogue
from fleet_server.trust.keyring import Keyring

COLUMNS, CLASSES = 4, 3
DEADLINE_S = 60.0


def _classifier(
    *, weights: np.ndarray | None = None, name: str = "features", opset: int = 17
) -> onnx.ModelProto:
    if weights is None:
        weights = np.eye(COLUMNS)[:, :CLASSES] * 3 + 0.1
    weights = weights.astype(np.float32)
    columns, classes = weights.shape
    graph = helper.make_graph(
        [helper.make_node("Gemm", [name, "weight", "bias"], ["logits"])],
        "classifier",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", columns])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        initializer=[
            numpy_helper.from_array(weights, "weight"),
            numpy_helper.from_array(np.zeros(classes, dtype=np.float32), "bias"),
        ],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _recurrent(batch: str | None = "some") -> onnx.ModelProto:
    """Two branches by the rate, and a memory [2, batch, 3] that fades; the batch has no name
    where the memory comes from, unless it is given.
    """

    def branch(name: str, factor: float) -> onnx.GraphProto:
        value = numpy_helper.from_array(np.array(factor, np.float32), f"{name}_factor")
        return helper.make_graph(
            [helper.make_node("Mul", ["memory", f"{name}_factor"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, None, 3])],
            initializer=[value],
        )

    rng = np.random.default_rng(3)
    weights: dict[str, Any] = {
        "inward": rng.normal(size=(4, 3)).astype(np.float32),
        "outward": np.array([[1.0], [-2.0], [0.5]], np.float32),
        "two": np.array(2, np.int64),
    }
    nodes = [
        helper.make_node("Equal", ["rate", "two"], ["slow"]),
        helper.make_node(
            "If",
            ["slow"],
            ["faded"],
            then_branch=branch("kept", 0.5),
            else_branch=branch("lost", 0.1),
        ),
        helper.make_node("MatMul", ["frame", "inward"], ["seen"]),
        helper.make_node("Add", ["faded", "seen"], ["memory_after"]),
        helper.make_node("ReduceMean", ["memory_after"], ["both"], axes=[0], keepdims=0),
        helper.make_node("MatMul", ["both", "outward"], ["score"]),
    ]
    first = batch or "rows"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [
            value("frame", TensorProto.FLOAT, [first, 4]),
            value("memory", TensorProto.FLOAT, [2, None if batch == "some" else batch, 3]),
            value("rate", TensorProto.INT64, []),
        ],
        [
            value("score", TensorProto.FLOAT, [first, 1]),
            value("memory_after", TensorProto.FLOAT, [2, None if batch == "some" else batch, 3]),
        ],
        initializer=[numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _rows(count: int = 100, columns: int = COLUMNS, seed: int = 5) -> np.ndarray:
    # One cluster a class: no row is so undecided that eight bits could change its class.
    noise = np.random.default_rng(seed).normal(size=(count, columns)) * 0.2
    return (noise + 2 * np.eye(columns)[np.arange(count) % CLASSES]).astype(np.float32)


def _npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture
def classifier() -> Callable[..., onnx.ModelProto]:
    """Makes a linear classifier of 4 columns and 3 classes."""
    return _classifier


@pytest.fixture
def recurrent() -> Callable[..., onnx.ModelProto]:
    """Makes a model with a state whose batch is its second axis, and an input that is no batch."""
    return _recurrent


@pytest.fixture
def rows() -> Callable[..., np.ndarray]:
    """Makes rows for it."""
    return _rows


@pytest.fixture
def npz() -> Callable[..., bytes]:
    """Makes an npz file."""
    return _npz


@dataclass
class Bench:
    """The parts of a server that releases need, in one folder."""

    folder: Path
    database: Database
    keyring: Keyring
    catalogue: Catalogue
    laboratory: Laboratory
    clock: SystemClock = field(default_factory=SystemClock)
    _names: Iterator[int] = field(default_factory=itertools.count)

    @property
    def attester(self) -> Attester:
        return Attester(self.keyring.fleet, self.keyring.sign_checkpoint)

    def new_staging(self) -> Staging:
        store = Store(self.folder / "store")
        return Staging(
            self.folder,
            self.database,
            store,
            self.catalogue,
            self.attester,
            self.clock,
            self.laboratory,
        )

    def upload(self, version: str = "1.0.0", *, model: bytes | None = None, **data: Any) -> Upload:
        """Lay an upload's files into the folder of uploads, as intake would."""
        name = f"{next(self._names):032x}"
        folder = self.folder / "incoming" / name
        folder.mkdir(parents=True)
        source = _classifier().SerializeToString() if model is None else model
        (folder / FILES["model"]).write_bytes(source)
        for kind in ("calibration", "golden", "baseline"):
            given = data.pop(kind, None)
            (folder / FILES[kind]).write_bytes(given or _npz(features=_rows()))
        if evaluation := data.pop("evaluation", None):
            (folder / FILES["evaluation"]).write_bytes(evaluation)
            data["evaluated"] = True
        options = msgspec.convert({"model": "detector", "version": version, **data}, Options)
        return Upload(name, options, "0" * 64, len(source))

    def job(self, upload: Upload, **changed: Any) -> Job:
        """What staging makes of an upload."""
        given: dict[str, Any] = {
            "upload": upload,
            "counter": 7,
            "created_ms": 1_000,
            "previous": None,
            "incoming": self.folder / "incoming",
            "store": Store(self.folder / "store"),
            "laboratory": self.laboratory,
            "vouch": self.catalogue.publish,
            "monotonic_ms": self.clock.monotonic_ms,
            "attester": self.attester,
            "invocation": "c-1",
        }
        return Job(**{**given, **changed})

    def register(self, upload: Upload) -> ReleaseRecord:
        with self.database.transaction() as session:
            return service.register(session, upload, user="ann", correlation_id="c-1", now_ms=1_000)

    def record(self, version: str = "1.0.0") -> ReleaseRecord:
        with self.database.reading() as session:
            return service.get(session, "detector", version)

    def settled(self, version: str = "1.0.0") -> ReleaseRecord:
        """Wait until staging has ended and its files are swept."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            record = self.record(version)
            if (
                record.state != "staging"
                and not (self.folder / "incoming" / record.upload.folder).exists()
            ):
                return record
            time.sleep(0.01)
        pytest.fail(f"still staging after {DEADLINE_S} s")

    def stored(self) -> list[Path]:
        """Every file in the store."""
        return [path for path in (self.folder / "store").rglob("*") if path.is_file()]


@pytest.fixture(scope="session")
def laboratory() -> Iterator[Laboratory]:
    """One for all tests of a worker: its process imports the tools once."""
    found = Laboratory()
    yield found
    found.close()


@pytest.fixture
def bench(
    tmp_path: Path,
    database: Database,
    keyring: Keyring,
    catalogue: Catalogue,
    laboratory: Laboratory,
) -> Bench:
    """Database, keys and folders, without a running worker."""
    (tmp_path / "incoming").mkdir()
    return Bench(tmp_path, database, keyring, catalogue, laboratory)


@pytest.fixture
def staging(bench: Bench) -> Iterator[Staging]:
    """A running worker."""
    worker = bench.new_staging()
    worker.start()
    yield worker
    worker.stop(DEADLINE_S)


@pytest.fixture
def stage(bench: Any) -> Callable[..., tuple[Staged, list[Step]]]:
    """Stages an upload; returns what came of it, and the steps."""

    def run(
        version: str = "1.0.0",
        *,
        previous: Any = None,
        on_try: Callable[[str], None] = lambda _: None,
        **given: Any,
    ) -> Any:
        steps: list[Step] = []
        upload = bench.upload(version, **given)
        job = bench.job(upload, previous=previous, on_try=on_try)
        return pipeline.stage(job, steps.append), steps

    return run


@dataclass
class Client:
    """Calls the application without a socket, by default as its admin."""

    app: Any
    headers: dict[str, str]

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://server", headers=self.headers
            ) as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def anonymous(self) -> Client:
        return Client(self.app, {})


@pytest.fixture
def client(bench: Bench, staging: Staging, authority: Authority) -> Client:
    """The API as an operator uses it; no broker, publisher or controller runs behind it."""
    settings = Settings(data_dir=bench.folder, upload_limit_bytes=4 * 1024**2)
    app = create_app(settings)
    app.state.database, app.state.keyring = bench.database, bench.keyring
    app.state.staging, app.state.catalogue = staging, bench.catalogue
    app.state.authority = authority
    app.state.provenance_policy = Policy(())
    app.state.uploads = ResumableUploads(
        bench.folder / "uploads", most_bytes=settings.upload_limit_bytes
    )
    app.state.admission = Admission(settings, bench.database, bench.clock)
    with bench.database.transaction() as session:
        access.ensure_admin_token(
            session, bench.folder, random_bytes=os.urandom, now_ms=bench.clock.now_ms()
        )
    token = (bench.folder / TOKEN_FILE).read_text().strip()
    return Client(app, {"Authorization": f"Bearer {token}"})


@pytest.fixture
def push(client: Client) -> Callable[..., Any]:
    """Pushes the small classifier; keyword arguments replace files (bytes) or fields (text)."""

    def send(version: str = "1.0.0", *, name: str = "detector", **given: Any) -> Any:
        parts: dict[str, Any] = {
            "model": _classifier().SerializeToString(),
            "calibration": _npz(features=_rows()),
            "golden": _npz(features=_rows(seed=6)),
            "version": version,
            **given,
        }
        files = {key: (key, value) for key, value in parts.items() if isinstance(value, bytes)}
        texts = {key: value for key, value in parts.items() if isinstance(value, str)}
        return client.post(f"/v1/models/{name}/releases", data=texts, files=files)

    return send

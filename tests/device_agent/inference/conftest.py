"""Releases for the tests of this room: small ONNX models, made on the spot, with golden vectors."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from device_agent.inference.host import ModelHost
from device_agent.inference.probe import Prober
from device_agent.inference.session import OnnxRuntime
from fleet_contract import codec
from fleet_contract.features import (
    INNER_EDGES,
    CategoricalFeature,
    FeatureSchema,
    FeatureSet,
    NumericFeature,
    Reduction,
    Source,
)
from fleet_contract.manifest import (
    FileRef,
    GoldenFile,
    GoldenVectors,
    Lineage,
    Manifest,
    Requirements,
    Runtime,
    TensorData,
    TensorSpec,
    Variant,
)

EDGES = [float(edge) for edge in np.linspace(-3, 3, INNER_EDGES)]
SCHEMA = FeatureSchema(
    FeatureSet([NumericFeature("x_mean", Source("x", Reduction.MEAN), 16, EDGES)]),
    FeatureSet(
        [NumericFeature("top_p", Source("y", Reduction.TOP_PROBABILITY, logits=True), 16, EDGES)],
        [CategoricalFeature("top", Source("y", Reduction.TOP_CLASS), ["a", "b", "c"])],
    ),
)
ROWS = np.random.default_rng(7).normal(size=(8, 4)).astype(np.float32)


@dataclass(frozen=True)
class Release:
    """A release whose files lie in a folder of the test's."""

    digest: str
    manifest: Manifest
    path: Path
    golden_path: Path

    @property
    def variant(self) -> Variant:
        return self.manifest.variants[0]

    def prepare(self, host: ModelHost, now_ms: int = 1_000) -> None:
        host.prepare(
            self.digest,
            self.manifest,
            self.variant,
            self.path,
            self.golden_path,
            now_ms=now_ms,
        )


class Workshop:
    """Makes models and releases."""

    rows = ROWS
    schema = SCHEMA

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def model(
        self,
        nodes: list[NodeProto],
        weights: dict[str, NDArray[Any]] | None = None,
        *,
        width: int = 4,
        classes: int = 3,
    ) -> bytes:
        """Return a model from x [n, width] to y [n, classes]."""
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", classes])],
            [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
        )
        return self.pack(graph)

    def pack(self, graph: GraphProto) -> bytes:
        opset = helper.make_opsetid("", 17)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
        return bytes(model.SerializeToString())

    def linear(self, scale: float = 1.0, *, width: int = 4) -> bytes:
        """Return a model with y = scale * x @ w; models of one width agree on every winner."""
        weights = np.random.default_rng(3).normal(size=(width, 3)).astype(np.float32) * scale
        return self.model(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weights}, width=width
        )

    def release(
        self,
        model: bytes,
        outputs: NDArray[Any] | None = None,
        *,
        name: str = "",
        agreement: float = 1.0,
        largest_difference: float = 1e-4,
    ) -> Release:
        """Write a release; ``outputs`` are what the golden vectors expect of the golden rows."""
        expected = np.zeros((len(ROWS), 3), np.float32) if outputs is None else outputs
        golden = codec.encode_msgpack(
            GoldenFile(
                [TensorData("x", "float32", list(ROWS.shape), ROWS.tobytes())],
                [TensorData("y", expected.dtype.name, list(expected.shape), expected.tobytes())],
            )
        )
        artifact, golden_ref = _ref(model), _ref(golden)
        manifest = Manifest(
            model="digits",
            version="1.0.0",
            release_counter=1,
            created_ms=0,
            least_agent=1,
            variants=[Variant("cpu", Runtime.ONNXRUNTIME, "float32", artifact, Requirements())],
            inputs=[TensorSpec("x", "float32", [None, 4])],
            outputs=[TensorSpec("y", "float32", [None, 3])],
            features=SCHEMA,
            golden=GoldenVectors(golden_ref, agreement, largest_difference),
            baseline=artifact,
            lineage=Lineage(artifact.digest, None, {}, None),
        )
        digest = hashlib.sha256(artifact.digest.encode() + name.encode()).hexdigest()
        path, golden_path = self._folder / digest, self._folder / f"{digest}.golden"
        path.write_bytes(model)
        golden_path.write_bytes(golden)
        return Release(digest, manifest, path, golden_path)

    def good(self, scale: float = 1.0) -> Release:
        """Return a release that passes every check and answers scale * (x @ w)."""
        weights = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float32) * scale
        return self.release(self.linear(scale), ROWS @ weights)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


@pytest.fixture(scope="module")
def prober() -> Iterator[Prober]:
    """One helper process for a module's tests: it takes most of a second to import the runtime."""
    prober = Prober(timeout_s=60)
    yield prober
    prober.close()


@pytest.fixture
def host(prober: Prober) -> Iterator[ModelHost]:
    # What is not drained in time counts for nobody: here the time only ends a hang.
    host = ModelHost(OnnxRuntime(), prober, ticks_ns=time.monotonic_ns, drain_s=60)
    yield host
    host.close(now_ms=10**12)


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Wait for a condition, at most a minute."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            time.sleep(0.002)

    return wait


def _ref(data: bytes) -> FileRef:
    return FileRef(hashlib.sha256(data).hexdigest(), len(data))

"""Models and releases for the benchmarks: a MobileNetV2 with random weights, made on the spot.

EDGEFLEET_BENCH_MODEL names an ONNX file to measure with instead: one image input, class scores out.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

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

# Expansion, channels out, repeats, stride: the blocks of MobileNetV2 (Sandler et al., 2018).
BLOCKS = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)
CLASSES = 1000


def mobilenet(seed: int, side: int) -> bytes:
    """Return an ONNX model, images [n, 3, side, side] to logits [n, 1000]; 224 is usual."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def conv(source: str, into: int, out: int, size: int, stride: int, group: int = 1) -> str:
        name = f"t{len(nodes)}"
        fan = into // group * size * size
        kernel = rng.normal(0, (2 / fan) ** 0.5, (out, into // group, size, size))
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"{name}_w"))
        nodes.append(
            helper.make_node(
                "Conv",
                [source, f"{name}_w"],
                [name],
                kernel_shape=[size, size],
                pads=[size // 2] * 4,
                strides=[stride, stride],
                group=group,
            )
        )
        return name

    def relu(source: str) -> str:
        nodes.append(helper.make_node("Relu", [source], [f"{source}_r"]))
        return f"{source}_r"

    blocks = [
        (expansion, out, stride if number == 0 else 1)
        for expansion, out, repeats, stride in BLOCKS
        for number in range(repeats)
    ]
    at, channels = relu(conv("image", 3, 32, 3, 2)), 32
    for expansion, out, stride in blocks:
        wide = channels * expansion
        inner = relu(conv(at, channels, wide, 1, 1))
        inner = relu(conv(inner, wide, wide, 3, stride, group=wide))
        narrow = conv(inner, wide, out, 1, 1)
        if stride == 1 and out == channels:
            nodes.append(helper.make_node("Add", [at, narrow], [f"{narrow}_s"]))
            narrow = f"{narrow}_s"
        at, channels = narrow, out
    at = relu(conv(at, channels, 1280, 1, 1))
    nodes.append(helper.make_node("GlobalAveragePool", [at], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    head = rng.normal(0, 0.03, (1280, CLASSES)).astype(np.float32)
    weights.append(numpy_helper.from_array(head, "head"))
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "mobilenet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@dataclass(frozen=True)
class BenchRelease:
    """A release in a folder, and an input for it."""

    digest: str
    manifest: Manifest
    path: Path
    golden_path: Path
    inputs: dict[str, NDArray[Any]]

    @property
    def variant(self) -> Variant:
        return self.manifest.variants[0]


def model_bytes(seed: int, side: int = 224) -> bytes:
    """Return the model to measure with."""
    chosen = os.environ.get("EDGEFLEET_BENCH_MODEL")
    return Path(chosen).read_bytes() if chosen else mobilenet(seed, side)


def bare_session(model: bytes) -> onnxruntime.InferenceSession:
    """Return what the slot is compared with: the runtime alone, with the same options."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def schema(tensor_in: str, tensor_out: str, classes: int) -> FeatureSchema:
    """Return the features of an image classifier, as staging derives them."""
    edges = [float(edge) for edge in np.linspace(0.03, 0.97, INNER_EDGES)]
    summaries = (Reduction.MEAN, Reduction.DEVIATION, Reduction.MINIMUM, Reduction.MAXIMUM)
    scores = (Reduction.TOP_PROBABILITY, Reduction.ENTROPY, Reduction.MARGIN)
    return FeatureSchema(
        FeatureSet([NumericFeature(f"in_{r}", Source(tensor_in, r), 16, edges) for r in summaries]),
        FeatureSet(
            [
                NumericFeature(f"out_{r}", Source(tensor_out, r, logits=True), 16, edges)
                for r in scores
            ],
            [
                CategoricalFeature(
                    "top",
                    Source(tensor_out, Reduction.TOP_CLASS),
                    [str(number) for number in range(classes)],
                )
            ],
        ),
    )


def make_release(folder: Path, model: bytes) -> BenchRelease:
    """Write the release's files into ``folder`` and return what describes them."""
    session = bare_session(model)
    (tensor_in,), (tensor_out, *_) = session.get_inputs(), session.get_outputs()
    shape = [size if isinstance(size, int) else None for size in tensor_in.shape]
    rows = [size or 1 for size in shape]
    image = np.random.default_rng(0).random(rows, dtype=np.float32)
    scores = session.run([tensor_out.name], {tensor_in.name: image})[0]
    golden = codec.encode_msgpack(
        GoldenFile([_tensor(tensor_in.name, image)], [_tensor(tensor_out.name, scores)])
    )
    artifact = FileRef(hashlib.sha256(model).hexdigest(), len(model))
    manifest = Manifest(
        model="bench",
        version="1.0.0",
        release_counter=1,
        created_ms=0,
        least_agent=1,
        variants=[Variant("float", Runtime.ONNXRUNTIME, "float32", artifact, Requirements())],
        inputs=[TensorSpec(tensor_in.name, "float32", shape)],
        outputs=[TensorSpec(tensor_out.name, "float32", [None, scores.shape[1]])],
        features=schema(tensor_in.name, tensor_out.name, scores.shape[1]),
        golden=GoldenVectors(FileRef(hashlib.sha256(golden).hexdigest(), len(golden)), 1.0, 1e-3),
        baseline=artifact,
        lineage=Lineage(artifact.digest, None, {}, None),
    )
    path, golden_path = folder / artifact.digest, folder / f"{artifact.digest}.golden"
    path.write_bytes(model)
    golden_path.write_bytes(golden)
    return BenchRelease(artifact.digest, manifest, path, golden_path, {tensor_in.name: image})


def _tensor(name: str, array: NDArray[Any]) -> TensorData:
    return TensorData(name, array.dtype.name, list(array.shape), array.tobytes())

"""Makes small TFLite files without TensorFlow, by the schema that comes with LiteRT."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

CLASSES = 3


def classifier(
    columns: int = 4,
    *,
    hidden: int = 0,
    name: str = "features",
    answer: str = "scores",
    batch: int = 1,
    signatures: int = 1,
    custom: str = "",
    operator: int = schema.BuiltinOperator.SOFTMAX,
    variable: bool = False,
    external: bool = False,
    factor: float = 1.0,
    shape: tuple[int, ...] = (),
    weights: np.ndarray | None = None,
) -> bytes:
    """Return a float classifier of 3 classes: one layer, or two with ``hidden`` between them.

    ``weights`` [classes, columns] replace its own; ``shape`` is that of one row, if not columns.
    """
    model = schema.ModelT()
    model.version, model.description = 3, "toy"
    model.buffers, model.operatorCodes = [schema.BufferT()], []
    graph = schema.SubGraphT()
    graph.tensors, graph.operators, graph.name = [], [], "main"
    model.subgraphs = [graph]
    random = np.random.default_rng(3)

    def tensor(label: str, shape: list[int], data: Any = None) -> int:
        made = schema.TensorT()
        made.name, made.shape, made.type = label, shape, schema.TensorType.FLOAT32
        made.buffer = 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.astype("<f4").tobytes(), np.uint8)
            model.buffers.append(buffer)
            made.buffer = len(model.buffers) - 1
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def add(code: int, inputs: list[int], output: int, kind: int = 0, options: Any = None) -> None:
        known = schema.OperatorCodeT()
        known.builtinCode, known.deprecatedBuiltinCode, known.version = code, min(code, 127), 1
        if code == schema.BuiltinOperator.CUSTOM:
            known.customCode = custom
        model.operatorCodes.append(known)
        made = schema.OperatorT()
        made.opcodeIndex = len(model.operatorCodes) - 1
        made.inputs, made.outputs = inputs, [output]
        made.builtinOptionsType, made.builtinOptions = kind, options
        graph.operators.append(made)

    def dense(source: int, weights: np.ndarray, label: str) -> int:
        rows, width = weights.shape
        matrix = tensor(f"{label}.weight", [rows, width], weights)
        bias = tensor(f"{label}.bias", [rows], np.zeros(rows))
        target = tensor(label, [batch, rows])
        options = schema.FullyConnectedOptionsT()
        add(
            schema.BuiltinOperator.FULLY_CONNECTED,
            [source, matrix, bias],
            target,
            schema.BuiltinOptions.FullyConnectedOptions,
            options,
        )
        return target

    first = last = tensor(f"serving_{name}:0", [batch, *(shape or (columns,))])
    eye = np.eye(CLASSES, columns) * 3 + 0.1 if weights is None else weights
    eye = eye * factor
    classes = len(eye)
    if hidden:
        spread = np.zeros((hidden, columns))
        spread[:columns] = np.eye(columns)
        spread += random.normal(size=spread.shape) * 0.001
        last = dense(last, spread, "hidden")
        back = np.zeros((classes, hidden))
        back[:, :columns] = eye
        eye = back
    last = dense(last, eye, "logits")
    scores = tensor("scores:0", [batch, classes])
    if custom:
        add(schema.BuiltinOperator.CUSTOM, [last], scores)
    else:
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        add(operator, [last], scores, schema.BuiltinOptions.SoftmaxOptions, options)
    graph.inputs, graph.outputs = [first], [scores]
    if variable:
        graph.tensors[last].isVariable = True
    if external:
        group = schema.ExternalBufferGroupT()
        group.name = "weights.bin"
        model.externalBufferGroups = [group]
    model.signatureDefs = [
        _signature(f"serving_{number}", (name, first), (answer, scores))
        for number in range(signatures)
    ]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _signature(key: str, given: tuple[str, int], answer: tuple[str, int]) -> Any:
    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = key, 0
    maps = []
    for name, place in (given, answer):
        item = schema.TensorMapT()
        item.name, item.tensorIndex = name, place
        maps.append([item])
    made.inputs, made.outputs = maps
    return made


def integers() -> bytes:
    """Return a classifier of 3 classes in int8 from input to output, without a signature.

    ``features`` are read as 1/32 each, ``logits`` as 1/16; the weights are 3 on the diagonal.
    """
    model = schema.ModelT()
    model.version, model.buffers = 3, [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.tensors = []
    weights = np.eye(CLASSES, 4, dtype=np.int8) * 96
    for name, shape, kind, scale, data in (
        ("features", [1, 4], schema.TensorType.INT8, 1 / 32, None),
        ("weight", [CLASSES, 4], schema.TensorType.INT8, 1 / 32, weights),
        ("bias", [CLASSES], schema.TensorType.INT32, 1 / 1024, np.zeros(CLASSES, "<i4")),
        ("logits", [1, CLASSES], schema.TensorType.INT8, 1 / 16, None),
    ):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, shape, kind
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [0]
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            model.buffers.append(buffer)
            tensor.buffer = len(model.buffers) - 1
        graph.tensors.append(tensor)
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 4  # the first with int8
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [0, 1, 2], [3]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph.operators, graph.inputs, graph.outputs = [operator], [0], [3]
    model.operatorCodes, model.subgraphs = [code], [graph]
    builder = flatbuffers.Builder(512)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def doubling() -> bytes:
    """Return a file with y = x + x for two float32, without a signature, as devices try it."""
    model = schema.ModelT()
    model.version, model.buffers = 3, [schema.BufferT()]
    code = schema.OperatorCodeT()
    code.version = 1  # ADD is number 0
    graph = schema.SubGraphT()
    graph.tensors = []
    for name in ("x", "y"):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, [1, 2], schema.TensorType.FLOAT32
        graph.tensors.append(tensor)
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [0, 0], [1]
    operator.builtinOptionsType = schema.BuiltinOptions.AddOptions
    operator.builtinOptions = schema.AddOptionsT()
    graph.operators, graph.inputs, graph.outputs = [operator], [0], [1]
    model.operatorCodes, model.subgraphs = [code], [graph]
    builder = flatbuffers.Builder(256)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())

"""Examines an uploaded ONNX file without running it: the checks, in order.

1. It is an ONNX model.  2. It needs no other file.  3. Its opset, IR and domains are those of the
devices' runtime.  4. Each operator is allowed.  5. Inputs and outputs are tensors of numbers whose
first axis is the batch, or can be brought into that form.  6. ONNX's own checker agrees. What the
model computes is not judged here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import helper

from fleet_contract.manifest import TensorSpec
from fleet_server.releases import limits, operators, specialisation
from fleet_server.releases.interface import Interface
from fleet_server.releases.states import Refusal

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_DTYPES = (
    "bool",
    "float32",
    "float64",
    *(f"{s}int{n}" for s in ("", "u") for n in (8, 16, 32, 64)),
)


@dataclass(frozen=True, slots=True)
class Examined:
    """A model that passed; shapes have None for the batch only."""

    model: onnx.ModelProto
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    opset: int
    ir_version: int
    operators: list[str]
    changed: bool = False


def examine(data: bytes, interface: Interface | None = None) -> Examined:
    """Examine the bytes of an ONNX file.

    Args:
        data: the file.
        interface: what the pusher says about its inputs and outputs.

    Returns:
        The model as it goes on; ``changed`` says that it is not the file's any more.

    Raises:
        Refusal: with the first check that failed.
    """
    # 1. A model.
    model = _parse(data)
    # 2. No other file. Loading by path would let one in that lies beside the model.
    _check_self_contained(model)
    # 3. The runtime's versions.
    opset = _check_versions(model)
    # 4. Operators.
    operators.check(nodes(model), model.functions)
    # 5. Inputs and outputs.
    changed = specialisation.specialise(model, interface or Interface())
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    inputs = [_spec(item, "input") for item in model.graph.input if item.name not in constants]
    outputs = [_spec(item, "output") for item in model.graph.output]
    if len({spec.name for spec in outputs}) < len(outputs):
        raise _refuse("bad_name", "Two outputs have the same name.", "Export each output once.")
    if not inputs or not outputs:
        raise _refuse("no_tensors", "The model has no input or no output.", "Export it again.")
    # 6. ONNX's checker, with shapes.
    _check_form(model)
    names = sorted({node.op_type for node in nodes(model)})
    return Examined(model, inputs, outputs, opset, model.ir_version, names, changed)


def check_size(size_bytes: int) -> None:
    """Judge a file before it is read.

    Raises:
        Refusal: ``model_too_large``.
    """
    if size_bytes > limits.MODEL_BYTES:
        raise Refusal(
            "examination",
            "model_too_large",
            f"The model has {size_bytes} bytes.",
            "Models for devices are smaller; split it or prune it.",
            figure=size_bytes,
            bound=limits.MODEL_BYTES,
        )


def _parse(data: bytes) -> onnx.ModelProto:
    check_size(len(data))
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise _no_model() from error
    if not model.graph.node:
        raise _no_model()
    return model


def _check_self_contained(model: onnx.ModelProto) -> None:
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise _refuse(
                "external_data",
                f"Tensor {tensor.name[:80]!r} lies in another file.",
                "Save the model with all its weights inside: onnx.save(model, file).",
            )
    if model.training_info:
        raise _refuse(
            "training_info", "The model carries training graphs.", "Export it for inference."
        )


def _check_versions(model: onnx.ModelProto) -> int:
    opsets = {item.domain: item.version for item in model.opset_import}
    local = {function.domain for function in model.functions}
    foreign = sorted(domain for domain in opsets if domain not in {*_DOMAINS, *local})
    if foreign:
        raise _refuse(
            "foreign_operators",
            f"The model uses operators of {', '.join(foreign)[:80]}.",
            "Export it with ONNX's own operators.",
        )
    opset: int = max(opsets.get("", 0), opsets.get("ai.onnx", 0))
    for what, figure, least, most in (
        ("opset", opset, limits.OLDEST_OPSET, limits.OPSET),
        ("IR version", model.ir_version, 3, limits.IR_VERSION),
    ):
        if not least <= figure <= most:
            raise Refusal(
                "examination",
                "unsupported_version",
                f"The model has {what} {figure}; devices run {least} to {most}.",
                "Export it again with an opset in this range, for example 17.",
                figure=figure,
                bound=most if figure > most else least,
            )
    return opset


def _spec(item: onnx.ValueInfoProto, side: str) -> TensorSpec:
    advice = (
        "Export it with a dynamic first axis, the batch, and fixed sizes of all others; or say "
        "what the file does not: --shape state=2,n,128 with n for the batch, --constant sr=16000."
    )
    kind = item.type.tensor_type
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    except (KeyError, TypeError):
        dtype = "unknown"
    if not item.type.HasField("tensor_type") or dtype not in _DTYPES:
        raise _refuse(
            "unsupported_type",
            f"The {side} {item.name[:80]!r} is no tensor of numbers.",
            "Use float32 or integers.",
        )
    dims = kind.shape.dim
    rest = [dim.dim_value for dim in dims[1:]]
    if (
        not kind.HasField("shape")
        or not dims
        or dims[0].HasField("dim_value")
        or min(rest, default=1) < 1
    ):
        raise _refuse(
            "not_batch_first",
            f"The {side} {item.name[:80]!r} is not [batch, fixed sizes…].",
            advice,
        )
    if len(dims) > 8 or math.prod(rest) > limits.ROW_ELEMENTS:
        raise Refusal(
            "examination",
            "tensor_too_large",
            f"The {side} {item.name[:80]!r} is too large.",
            advice,
            figure=float(math.prod(rest)),
            bound=limits.ROW_ELEMENTS,
        )
    if not _is_shown(item.name):
        raise _refuse(
            "bad_name",
            f"The name {item.name[:80]!r} of an {side} is empty, longer than 200 characters, or no "
            "text that can be shown.",
            "Name inputs and outputs when you export the model.",
        )
    return TensorSpec(item.name, dtype, [None, *rest])


def _is_shown(name: object) -> bool:
    # Protobuf hands out bytes where they are no text.
    return isinstance(name, str) and 0 < len(name) <= 200 and name.isprintable()


def _check_form(model: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        ValueError,
        RuntimeError,
    ) as error:
        raise _refuse(
            "invalid_model",
            f"ONNX's checker says: {str(error).splitlines()[0][:300] if str(error) else error!r}",
            "Check it where you export it: onnx.checker.check_model(model, full_check=True).",
        ) from error


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of subgraphs and functions included."""
    waiting = [(node, 0) for node in model.graph.node]
    waiting += [(node, 0) for function in model.functions for node in function.node]
    while waiting:
        node, depth = waiting.pop()
        yield node
        if depth > limits.NESTING:
            raise Refusal(
                "examination",
                "too_deep",
                "Subgraphs are nested too deeply.",
                "Flatten the model.",
                figure=depth,
                bound=limits.NESTING,
            )
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                waiting += [(inner, depth + 1) for inner in graph.node]


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that holds data, wherever it hides."""
    yield from _initialisers(model.graph)
    for info in model.training_info:
        yield from _initialisers(info.initialization)
        yield from _initialisers(info.algorithm)
    functions = [item for function in model.functions for item in function.attribute_proto]
    for attribute in [*functions, *(item for node in nodes(model) for item in node.attribute)]:
        yield attribute.t
        yield from attribute.tensors
        for sparse in [attribute.sparse_tensor, *attribute.sparse_tensors]:
            yield sparse.values
            yield sparse.indices
        for graph in [attribute.g, *attribute.graphs]:
            yield from _initialisers(graph)


def _initialisers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices


def _no_model() -> Refusal:
    return _refuse(
        "not_onnx",
        "The file is no ONNX model.",
        "Export it again; check the upload with sha256sum if it was copied around.",
    )


def _refuse(code: str, detail: str, advice: str) -> Refusal:
    return Refusal("examination", code, detail, advice)

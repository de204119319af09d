"""Makes a candidate whose weights are stored small and computed with in 32-bit float.

Each large weight is stored as int8 with a scale per channel, or as 16-bit float, and turned back by
operators whose inputs are constant: the runtime computes them once, while it loads the model, and
then runs the very kernels of the float model. The file and the download shrink, time and memory of
a run do not; what rounding the activations would break stays whole. (DequantizeLinear would say the
same, but onnxruntime leaves it in the graph, and pays for it in every run.)
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_LEAST_ELEMENTS = 1024
_INT8 = 127


def shrink(model: onnx.ModelProto, operators: tuple[str, ...], *, bits: int) -> int:
    """Store the weights of some operators small; return how many were.

    Args:
        model: is changed. Weights in subgraphs are left as they are.
        operators: whose second input is a weight.
        bits: 8 or 16.
    """
    graph = model.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    unpacking: list[onnx.NodeProto] = []
    for node in graph.node:
        tensor = held.get(node.input[1]) if node.op_type in operators else None
        if tensor is None or tensor.data_type != TensorProto.FLOAT:
            continue
        weight: NDArray[np.float32] = numpy_helper.to_array(tensor)
        if weight.size < _LEAST_ELEMENTS or weight.ndim < 2:
            continue
        name = tensor.name
        del held[name]
        graph.initializer.remove(tensor)
        stored: NDArray[np.generic] = weight.astype(np.float16)
        scales = None
        if bits == 8:
            stored, scales = _round(weight, _channel(node))
        graph.initializer.append(numpy_helper.from_array(stored, f"{name}/stored"))
        whole = name if scales is None else f"{name}/steps"
        cast = helper.make_node("Cast", [f"{name}/stored"], [whole], to=TensorProto.FLOAT)
        unpacking.append(cast)
        if scales is not None:
            graph.initializer.append(numpy_helper.from_array(scales, f"{name}/scales"))
            unpacking.append(helper.make_node("Mul", [whole, f"{name}/scales"], [name]))
    for node in reversed(unpacking):
        graph.node.insert(0, node)
    return len(unpacking)


def _channel(node: onnx.NodeProto) -> int:
    """The axis of a weight that belongs to one output each: rounding errors then stay apart."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    swapped = any(item.name == "transB" and item.i for item in node.attribute)
    return 0 if swapped else -1


def _round(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return steps and scales: ``steps * scales`` is nearest to the weight, symmetric around 0."""
    others = tuple(number for number in range(weight.ndim) if number != axis % weight.ndim)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    scales = np.maximum(largest / _INT8, np.finfo(np.float32).tiny).astype(np.float32)
    steps = np.clip(np.rint(weight / scales), -_INT8, _INT8).astype(np.int8)
    return steps, scales

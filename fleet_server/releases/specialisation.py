"""Brings a model into the one form that devices run: rows first, and nothing but rows.

A model may have its batch on another axis, inputs that are the same for every row (a sampling
rate), and sizes that its file leaves open. Decided once, here, before anything is measured: the
batch is moved to the front by transpositions that become part of the model, constants are written
into it, sizes are filled in. Devices, golden vectors and sketches then know rows only. Runs in a
child of the laboratory; a model that needs none of it is not touched.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from fleet_server.releases.interface import BATCH, Interface
from fleet_server.releases.states import Refusal

_CONSTANT_ELEMENTS = 1 << 16
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")

Dims = list[int | None]
"""Sizes of a tensor, None at the batch."""


def specialise(model: onnx.ModelProto, interface: Interface) -> bool:
    """Change ``model`` so that each input and output is [batch, fixed sizes…]; say if it changed.

    What cannot be resolved stays as it is, for the examination to refuse.

    Raises:
        Refusal: ``unknown_tensor`` for a name that the model lacks, ``shape_differs`` if what the
            pusher says contradicts the file, ``bad_constant`` for one that does not fit,
            ``bad_state`` for states of different forms.
    """
    graph = model.graph
    held = {tensor.name for tensor in graph.initializer}
    inputs = {item.name: item for item in graph.input if item.name not in held}
    outputs = {item.name: item for item in graph.output}
    _check_names(interface, set(inputs), set(outputs))
    changed = bool(interface.constants)
    for name, value in interface.constants.items():
        graph.initializer.append(_constant(inputs.pop(name), value, interface))
        graph.input.remove(next(item for item in graph.input if item.name == name))
    batches = _batch_names(inputs.values(), interface)
    found: dict[str, Dims] = {}
    for name, item in [*inputs.items(), *outputs.items()]:
        dims = _dims(item, interface, batches)
        if dims is not None:
            found[name] = dims
    for name, output in interface.states.items():
        if name in found and output not in interface.shapes:
            found[output] = _agreeing(outputs[output], found[name])
        _check_state(inputs[name], outputs[output], found)
    for name, item in inputs.items():
        if name in found and _is_new(item, found[name]):
            _move_input(graph, item, found[name])
            changed = True
    for name, item in outputs.items():
        if name in found and _is_new(item, found[name]):
            _move_output(graph, item, found[name])
            changed = True
    if changed:
        del graph.value_info[:]  # may say what holds no longer; the checker infers it anew
    return changed


def fold(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Return the model without what its constants decide: branches never taken, sums of constants.

    By the runtime's own basic optimisations, which depend on no processor; as it is where they
    fail, or need operators that are not ONNX's.
    """
    source, target = folder / "specialised.onnx", folder / "folded.onnx"
    source.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        folded = onnx.ModelProto()
        folded.ParseFromString(target.read_bytes())
    except Exception:  # onnxruntime raises many kinds, with no common root of its own
        return model
    finally:
        source.unlink()
        target.unlink(missing_ok=True)
    used = {node.domain for node in _nodes(folded.graph)}
    if not used <= set(_DOMAINS):
        return model
    kept = [item for item in folded.opset_import if item.domain in {*used, ""}]
    del folded.opset_import[:]
    folded.opset_import.extend(kept)
    return folded


def _check_names(interface: Interface, inputs: set[str], outputs: set[str]) -> None:
    for what, names, known in (
        ("shape", set(interface.shapes), inputs | outputs),
        ("constant", set(interface.constants), inputs),
        ("state", set(interface.states), inputs - set(interface.constants)),
        ("state's output", set(interface.states.values()), outputs),
    ):
        for name in sorted(names - known):
            raise _refuse(
                "unknown_tensor",
                f"The {what} of {name[:80]!r} is given, and the model has no such tensor.",
                f"Its inputs are {', '.join(sorted(inputs))[:200]}; its outputs are "
                f"{', '.join(sorted(outputs))[:200]}.",
            )


def _batch_names(inputs: Iterable[onnx.ValueInfoProto], interface: Interface) -> set[str]:
    """Return the symbols that stand for the batch: of inputs where it is plain which axis it is."""
    names = set()
    for item in inputs:
        dims = item.type.tensor_type.shape.dim
        given = interface.shapes.get(item.name)
        if given is not None and len(given) == len(dims) and BATCH in given:
            names.add(dims[given.index(BATCH)].dim_param)
        elif dims and _free(item) == [0]:
            names.add(dims[0].dim_param)
    return names - {""}


def _dims(item: onnx.ValueInfoProto, interface: Interface, batches: set[str]) -> Dims | None:
    """Return the sizes, None where they are not clear."""
    given = interface.shapes.get(item.name)
    if given is not None:
        sizes = [size if isinstance(size, int) else None for size in given]
        if sizes.count(None) != 1:
            raise _differs(item, "has not one n, for the batch")
        return _agreeing(item, sizes)
    kind, free = item.type.tensor_type, _free(item)
    dims = list(kind.shape.dim)
    if len(free) != 1 or (free != [0] and dims[free[0]].dim_param not in batches):
        return None
    return [None if axis in free else dim.dim_value for axis, dim in enumerate(dims)]


def _free(item: onnx.ValueInfoProto) -> list[int]:
    dims = item.type.tensor_type.shape.dim
    return [axis for axis, dim in enumerate(dims) if not dim.HasField("dim_value")]


def _agreeing(item: onnx.ValueInfoProto, sizes: list[int | None]) -> Dims:
    """Return ``sizes`` if the file does not say otherwise."""
    kind = item.type.tensor_type
    if kind.HasField("shape"):
        dims = kind.shape.dim
        if len(dims) != len(sizes):
            raise _differs(item, f"has {len(sizes)} axes, in the file it has {len(dims)}")
        for dim, size in zip(dims, sizes, strict=True):
            if dim.HasField("dim_value") and dim.dim_value != size:
                raise _differs(item, f"has {size or BATCH} where the file has {dim.dim_value}")
    return sizes


def _check_state(
    source: onnx.ValueInfoProto, target: onnx.ValueInfoProto, found: dict[str, Dims]
) -> None:
    types = source.type.tensor_type.elem_type, target.type.tensor_type.elem_type
    known = source.name in found and target.name in found
    if types[0] != types[1] or (known and found[source.name] != found[target.name]):
        raise _refuse(
            "bad_state",
            f"Output {target.name[:80]!r} cannot be input {source.name[:80]!r} of the next step: "
            "type or shape differ.",
            "Name the output that has the state's own form.",
        )


def _constant(
    item: onnx.ValueInfoProto, value: bool | int | float, interface: Interface
) -> onnx.TensorProto:
    dims = item.type.tensor_type.shape.dim
    given = interface.shapes.get(item.name)
    sizes = [dim.dim_value for dim in dims] if given is None else given
    numbers = [size for size in sizes if isinstance(size, int) and size > 0]
    small = len(numbers) == len(sizes) and math.prod(numbers) <= _CONSTANT_ELEMENTS
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type))
        array = np.full(numbers if small else 1, value, dtype)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _bad_constant(item, value) from None
    exact = dtype.kind == "f" or (dtype.kind in "biu" and bool((array == value).all()))
    if not small or not exact or not np.isfinite(array).all():
        raise _bad_constant(item, value)
    return numpy_helper.from_array(array, item.name)


def _bad_constant(item: onnx.ValueInfoProto, value: bool | int | float) -> Refusal:
    return _refuse(
        "bad_constant",
        f"Input {item.name[:80]!r} cannot be {value}: its type or size is another.",
        "A constant is one number, in an input of fixed sizes; it fills all of them.",
    )


def _is_new(item: onnx.ValueInfoProto, dims: Dims) -> bool:
    """Whether the file says it otherwise than as [batch, fixed sizes…]."""
    kind = item.type.tensor_type
    return not kind.HasField("shape") or dims[0] is not None or len(_free(item)) != 1


def _move_input(graph: onnx.GraphProto, item: onnx.ValueInfoProto, dims: Dims) -> None:
    axis = dims.index(None)
    _declare(item, dims)
    if axis:
        inner = f"{item.name}/batch-{axis}"
        _rename(graph, item.name, inner)
        order = [*range(1, axis + 1), 0, *range(axis + 1, len(dims))]
        graph.node.insert(0, helper.make_node("Transpose", [item.name], [inner], perm=order))


def _move_output(graph: onnx.GraphProto, item: onnx.ValueInfoProto, dims: Dims) -> None:
    axis = dims.index(None)
    _declare(item, dims)
    if axis:
        inner = f"{item.name}/batch-{axis}"
        _rename(graph, item.name, inner)
        order = [axis, *range(axis), *range(axis + 1, len(dims))]
        graph.node.append(helper.make_node("Transpose", [inner], [item.name], perm=order))


def _declare(item: onnx.ValueInfoProto, dims: Dims) -> None:
    shape = item.type.tensor_type.shape
    shape.ClearField("dim")
    shape.dim.add().dim_param = BATCH
    for size in dims:
        if size is not None:
            shape.dim.add().dim_value = size


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename a value wherever it is made or used; subgraphs see the names around them."""
    for node in _nodes(graph):
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    for inner in _graphs(graph):
        for item in inner.output:
            if item.name == old:
                item.name = new


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    yield from graph.node
    for inner in _graphs(graph):
        yield from inner.node


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Every subgraph; how deep they may be nested was examined before."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield inner
                yield from _graphs(inner)


def _differs(item: onnx.ValueInfoProto, how: str) -> Refusal:
    return _refuse(
        "shape_differs",
        f"The shape given for {item.name[:80]!r} {how}.",
        "Give the sizes as the file has them, and n once, for example state=2,n,128.",
    )


def _refuse(code: str, detail: str, advice: str) -> Refusal:
    return Refusal("examination", code, detail, advice)

"""Makes candidates of a float model: int8 in QDQ form, dynamic int8, 16-bit float, small weights.

Decides how one candidate is made. Static int8 has u8 activations and s8 weights per channel. Which
candidates are tried is decided in :mod:`fleet_server.releases.search`, whether one is still the
same model in :mod:`fleet_server.releases.parity`.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from fleet_server.releases import weights
from fleet_server.releases.examples import Rows, count
from fleet_server.releases.states import Recipe, Refusal

# Not everything that could be: one model with all operators quantised agreed with itself on 6.5%
# of its inputs. These are where the time goes, and what keeps them joined.
OPERATORS = [
    *("Conv", "Gemm", "MatMul"),
    *("Relu", "Clip", "Add", "Concat"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
]

ALL_OPERATORS = [
    *OPERATORS,
    *("Mul", "Sub", "Div", "Softmax", "Sigmoid", "Tanh", "LeakyRelu", "Resize", "Split", "Pad"),
    *("Gather", "Slice", "ArgMax", "Where", "ReduceMean", "InstanceNormalization"),
]
"""The others whose quantised form runs; they seldom gain, and often lose precision."""

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators with weights: what sensitivity by layer is measured of."""

_QUANTISED = ("QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Hands out the rows one by one."""

    def __init__(self, rows: Rows) -> None:
        self._batches = iter(
            [{name: array[i : i + 1] for name, array in rows.items()} for i in range(count(rows))]
        )

    def get_next(self) -> Rows | None:
        return next(self._batches, None)


def build(
    model: Path,
    recipe: Recipe,
    calibration: Rows,
    folder: Path,
    operators: Sequence[str] = (),
    layers: Sequence[str] = (),
) -> bytes:
    """Return the file of one candidate.

    Args:
        model: the examined float model. A path, since the tools move the weights of what they are
            given in memory to files, and then miss some.
        recipe: what to make. ``STATIC_7BIT`` keeps weights within 7 bits: it costs some precision;
            without it x86 processors that have no VNNI instructions may overflow in silence.
        calibration: rows that show the ranges of all activations.
        folder: for files in between; they stay there.
        operators: for ``MIXED``: those in int8.
        layers: for ``MIXED_LAYERS``: the nodes in int8, and nothing else.

    Raises:
        Refusal: ``not_quantisable`` if the tools fail or leave everything in float.
    """
    try:
        if recipe is Recipe.FLOAT16:
            whole = onnx.ModelProto.FromString(model.read_bytes())
            half: bytes = convert_float_to_float16(whole, keep_io_types=True).SerializeToString()
            return half
        if recipe in {Recipe.WEIGHTS8, Recipe.WEIGHTS16}:
            return _shrunk(model, bits=8 if recipe is Recipe.WEIGHTS8 else 16)
        prepared, quantised = _prepare(model, folder), folder / "quantised.onnx"
        if recipe in {Recipe.DYNAMIC, Recipe.DYNAMIC_MATMUL}:
            quantize_dynamic(
                str(prepared),
                str(quantised),
                # Dynamic convolutions are several times slower than those of floats.
                op_types_to_quantize=["MatMul"] if recipe is Recipe.DYNAMIC_MATMUL else None,
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
        else:
            chosen = {Recipe.MIXED: list(operators), Recipe.STATIC_ALL: ALL_OPERATORS}
            picked = chosen.get(recipe, OPERATORS), list(layers)
            _static(prepared, quantised, recipe, calibration, *picked)
        data = quantised.read_bytes()
        result = onnx.ModelProto.FromString(data)
    except Refusal:
        raise
    except Exception as error:  # the tools raise whatever happens inside them
        logging.getLogger(__name__).info("quantisation failed", exc_info=True)
        raise _refuse(f"it fails with {type(error).__name__}: {str(error)[:200]}") from error
    if not any(node.op_type in _QUANTISED for node in result.graph.node):
        raise _refuse("none of its operators has a quantised form")
    return data


def _shrunk(model: Path, *, bits: int) -> bytes:
    whole = onnx.ModelProto.FromString(model.read_bytes())
    if not weights.shrink(whole, LAYERS, bits=bits):
        raise _refuse("it has no large weights outside of subgraphs")
    data: bytes = whole.SerializeToString()
    return data


def layers(model: Path, folder: Path) -> list[str]:
    """Return the nodes with weights that can be in int8, those with the largest weights first.

    Their names are those by which :func:`build` knows them.

    Raises:
        Refusal: ``not_quantisable`` if the tools fail.
    """
    try:
        prepared = onnx.ModelProto.FromString(_prepare(model, folder).read_bytes())
    except Exception as error:  # the tools raise whatever happens inside them
        raise _refuse(f"it fails with {type(error).__name__}: {str(error)[:200]}") from error
    elements = {item.name: math.prod(item.dims) for item in prepared.graph.initializer}
    sizes = {
        node.name: sum(elements.get(name, 0) for name in node.input)
        for node in prepared.graph.node
        if node.op_type in LAYERS
    }
    return sorted((name for name in sizes if sizes[name]), key=lambda name: -sizes[name])


def _prepare(model: Path, folder: Path) -> Path:
    """Write the model as the tools want it: optimised, with shapes, each node with a name."""
    prepared = folder / "prepared.onnx"
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    whole = onnx.ModelProto.FromString(prepared.read_bytes())
    if not all(node.name for node in whole.graph.node):
        for number, node in enumerate(whole.graph.node):
            node.name = node.name or f"{node.op_type}-{number}"
        prepared.write_bytes(whole.SerializeToString())
    return prepared


def _static(
    prepared: Path,
    quantised: Path,
    recipe: Recipe,
    calibration: Rows,
    operators: list[str],
    layers: list[str],
) -> None:
    quantize_static(
        str(prepared),
        str(quantised),
        _Calibration(calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=operators,
        nodes_to_quantize=layers,
        per_channel=True,
        reduce_range=recipe is Recipe.STATIC_7BIT,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # Otherwise a ValueError for some per-channel biases (onnxruntime#24815).
        extra_options={"QDQDisableWeightAdjustForInt32Bias": True},
    )


def _refuse(why: str) -> Refusal:
    return Refusal(
        "quantisation",
        "not_quantisable",
        f"The model cannot be quantised: {why}.",
        "Quantised are " + ", ".join(OPERATORS[:3]) + " and what lies between them. Export the "
        "model for inference, with constants folded.",
    )

"""Makes candidates of a float model: int8 in QDQ form, dynamic int8, 16-bit float.

Decides how one candidate is made. Static int8 has u8 activations and s8 weights per channel. Which
candidates are tried is decided in :mod:`fleet_server.releases.search`, whether one is still the
same model in :mod:`fleet_server.releases.parity`.
"""

import logging
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

    Raises:
        Refusal: ``not_quantisable`` if the tools fail or leave everything in float.
    """
    if recipe is Recipe.WEIGHTS:
        raise _refuse("weights alone are quantised in TFLite files only")
    try:
        if recipe is Recipe.FLOAT16:
            whole = onnx.ModelProto.FromString(model.read_bytes())
            half: bytes = convert_float_to_float16(whole, keep_io_types=True).SerializeToString()
            return half
        prepared, quantised = folder / "prepared.onnx", folder / "quantised.onnx"
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
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
            _static(prepared, quantised, recipe, calibration, operators)
        data = quantised.read_bytes()
        result = onnx.ModelProto.FromString(data)
    except Exception as error:  # the tools raise whatever happens inside them
        logging.getLogger(__name__).info("quantisation failed", exc_info=True)
        raise _refuse(f"it fails with {type(error).__name__}: {str(error)[:200]}") from error
    if not any(node.op_type in _QUANTISED for node in result.graph.node):
        raise _refuse("none of its operators has a quantised form")
    return data


def _static(
    prepared: Path, quantised: Path, recipe: Recipe, calibration: Rows, operators: Sequence[str]
) -> None:
    chosen = {Recipe.MIXED: list(operators), Recipe.STATIC_ALL: ALL_OPERATORS}
    quantize_static(
        str(prepared),
        str(quantised),
        _Calibration(calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=chosen.get(recipe, OPERATORS),
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

"""Float to int8: static, QDQ form, u8 activations and s8 weights per channel.

Decides how one candidate is made. These settings are the best default by measurement: about half
the latency and a quarter of the size. Whether the result is still the same model is decided in
:mod:`fleet_server.releases.parity`.
"""

import logging
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from fleet_server.releases.examples import Rows, count
from fleet_server.releases.states import Refusal

# Not everything that could be: one model with all operators quantised agreed with itself on 6.5%
# of its inputs. These are where the time goes, and what keeps them joined.
OPERATORS = [
    *("Conv", "Gemm", "MatMul"),
    *("Relu", "Clip", "Add", "Concat"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
]


class _Calibration(CalibrationDataReader):  # type: ignore[misc]
    """Hands out the rows one by one."""

    def __init__(self, rows: Rows) -> None:
        self._batches = iter(
            [{name: array[i : i + 1] for name, array in rows.items()} for i in range(count(rows))]
        )

    def get_next(self) -> Rows | None:
        return next(self._batches, None)


def quantise(model: onnx.ModelProto, calibration: Rows, folder: Path, *, reduced: bool) -> bytes:
    """Return the int8 model's file.

    Args:
        model: the examined float model.
        calibration: rows that show the ranges of all activations.
        folder: for files in between; they stay there.
        reduced: keep weights within 7 bits. Costs some precision; without it x86 processors that
            have no VNNI instructions may overflow in silence.

    Raises:
        Refusal: ``not_quantisable`` if the tools fail or leave everything in float.
    """
    prepared, quantised = folder / "prepared.onnx", folder / "quantised.onnx"
    own = onnx.ModelProto()
    own.CopyFrom(model)  # the tools take the weights out of what they are given
    try:
        quant_pre_process(own, str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(quantised),
            _Calibration(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            per_channel=True,
            reduce_range=reduced,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Otherwise a ValueError for some per-channel biases (onnxruntime#24815).
            extra_options={"QDQDisableWeightAdjustForInt32Bias": True},
        )
        data = quantised.read_bytes()
        result = onnx.ModelProto.FromString(data)
    except Exception as error:  # the tools raise whatever happens inside them
        logging.getLogger(__name__).info("quantisation failed", exc_info=True)
        raise _refuse(f"it fails with {type(error).__name__}: {str(error)[:200]}") from error
    if not any(node.op_type == "QuantizeLinear" for node in result.graph.node):
        raise _refuse("none of its operators has a quantised form")
    return data


def _refuse(why: str) -> Refusal:
    return Refusal(
        "quantisation",
        "not_quantisable",
        f"The model cannot be quantised: {why}.",
        "Quantised are " + ", ".join(OPERATORS[:3]) + " and what lies between them. Export the "
        "model for inference, with constants folded.",
    )

"""Makes candidates of a float TFLite model with Google's ai-edge-quantizer.

Decides how one candidate is made: int8 inside with inputs and outputs left in float, so that a
release takes the same tensors whichever candidate ships. Which are tried is decided in
:mod:`fleet_server.releases.search`.
"""

import logging
from typing import TYPE_CHECKING, Any

from fleet_server.releases.examples import Rows, count
from fleet_server.releases.states import Recipe, Refusal

if TYPE_CHECKING:
    from ai_edge_quantizer.quantizer import Quantizer


def build(data: bytes, recipe: Recipe, calibration: Rows) -> bytes:
    """Return the file of one candidate.

    Args:
        data: the examined float model.
        recipe: ``STATIC`` (s8 activations and weights), ``DYNAMIC`` (s8 weights, activations as
            they come), ``WEIGHTS8`` (s8 weights, computed in float) or ``FLOAT16`` (weights).
        calibration: rows that show the ranges of all activations.

    Raises:
        Refusal: ``not_quantisable`` if the quantiser is missing, fails or leaves all in float.
    """
    try:
        from ai_edge_quantizer.quantizer import Quantizer
    except ImportError as error:
        raise _refuse("ai-edge-quantizer is not installed (edgefleet[tflite])") from error
    try:
        quantiser = Quantizer(bytearray(data))
        _choose(quantiser, recipe)
        found: dict[str, Any] = {}
        if quantiser.need_calibration:
            found = quantiser.calibrate(_samples(data, calibration), num_threads=1)
        made = quantiser.quantize(
            found or None, enable_progress_bar=False, enable_progress_report=False
        )
        result = bytes(made.quantized_model)
    except Refusal:
        raise
    except Exception as error:  # the tool raises whatever happens inside it
        logging.getLogger(__name__).info("quantisation failed", exc_info=True)
        raise _refuse(f"it fails with {type(error).__name__}: {str(error)[:200]}") from error
    if len(result) >= len(data):
        raise _refuse("it does not become smaller")
    return result


def _choose(quantiser: "Quantizer", recipe: Recipe) -> None:
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    names = qtyping.TFLOperationName
    every = names.ALL_SUPPORTED
    match recipe:
        case Recipe.STATIC:
            quantiser.add_static_config(".*", every, activation_num_bits=8, weight_num_bits=8)
            for side in (names.INPUT, names.OUTPUT):
                quantiser.update_quantization_recipe(
                    ".*", side, algorithm_key=AlgorithmName.NO_QUANTIZE
                )
        case Recipe.DYNAMIC:
            quantiser.add_dynamic_config(".*", every, num_bits=8)
        case Recipe.WEIGHTS8:
            quantiser.add_weight_only_config(".*", every, num_bits=8)
        case Recipe.FLOAT16:
            quantiser.update_quantization_recipe(
                ".*",
                every,
                qtyping.OpQuantizationConfig(
                    weight_tensor_config=qtyping.TensorQuantizationConfig(
                        num_bits=16, dtype=qtyping.TensorDataType.FLOAT
                    ),
                    compute_precision=qtyping.ComputePrecision.FLOAT,
                    explicit_dequantize=True,
                ),
                AlgorithmName.FLOAT_CASTING,
            )
        case _:
            raise _refuse(f"{recipe.value} is no recipe for TFLite files")


def _samples(data: bytes, rows: Rows) -> dict[str, list[dict[str, Any]]]:
    from ai_edge_litert.interpreter import Interpreter

    signatures = Interpreter(model_content=data, num_threads=1).get_signature_list()
    if not signatures:
        raise _refuse("static int8 needs a file with a signature; export it again with one")
    samples = [
        {name: array[index : index + 1] for name, array in rows.items()}
        for index in range(count(rows))
    ]
    return {next(iter(signatures)): samples}


def _refuse(why: str) -> Refusal:
    return Refusal(
        "quantisation",
        "not_quantisable",
        f"The model cannot be quantised: {why}.",
        "Quantised are convolutions, fully connected layers and what lies between them.",
    )

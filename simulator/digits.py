"""Three classifiers of scikit-learn's handwritten digits, and the images that devices feed them.

Decides what each release of the demo is: 1.0.0 a modest model, 1.1.0 a better one, and 2.0.0 one
that was prepared for other images than the devices have: dark ink on white paper, scaled to 0..1,
while a device's sensor gives bright ink on black, 0..16. Everything that came with 2.0.0 was
prepared in the same wrong way, so no check before the field can see it. Uploading them, and what a
fleet does about them, is left out.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MODEL = "digits"
INPUT = "image"
OUTPUT = "logits"
SIDE = 8
CLASSES = 10
OPSET = 17
IR_VERSION = 8

Images = NDArray[np.float32]
"""float32 of shape [n, 1, 8, 8]."""
Labels = NDArray[np.int64]

DATA = "https://archive.ics.uci.edu/dataset/80"
TRAINING_IMAGES = 1100
CALIBRATION_IMAGES = 256
BASELINE_IMAGES = 300
"""Held-out images that come with the release; the rest is what devices see."""


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """One release before it is pushed. The images are in the normalisation it was trained with.

    ``labels`` are what the baseline's images show. ``accuracy`` is that on images held out from
    training, in its own normalisation; ``field_accuracy`` that on what devices feed.
    """

    version: str
    model: bytes
    calibration: Images
    golden: Images
    baseline: Images
    labels: Labels
    accuracy: float
    field_accuracy: float

    def rows(self) -> dict[str, dict[str, Images | Labels]]:
        """Return what is pushed beside the model: file → its arrays by name."""
        return {
            "calibration": {INPUT: self.calibration},
            "golden": {INPUT: self.golden},
            "baseline": {INPUT: self.baseline},
            "evaluation": {INPUT: self.baseline, "label": self.labels},
        }

    def metadata(self) -> dict[str, object]:
        """Return what is said of the release, for its model card."""
        return {
            "owner": "the demo of edgefleet",
            "licence": "BSD-3-Clause",
            "tags": ["demo", "digits"],
            "datasets": {"digits": DATA},
            "metrics": {"held-out accuracy": self.accuracy},
            "notes": {
                "intended use": "Names the digit on an 8 x 8 image of a single handwritten digit.",
                "limits": "Made to show a rollout. It knows nothing but digits, upright and "
                "centred, with ink from 0 (none) to 16; on anything else it guesses.",
            },
        }


@dataclass(frozen=True, slots=True)
class _Recipe:
    version: str
    hidden: tuple[int, ...]
    training_images: int
    normalise: Callable[[Images], Images]
    input_scale: float
    epochs: int


def _as_the_sensor(images: Images) -> Images:
    return images


def _as_scanned_paper(images: Images) -> Images:
    return np.asarray(1 - images / 16, dtype=np.float32)


# The input scale is folded into the first layer: training wants inputs of about one.
_RECIPES = (
    _Recipe("1.0.0", (48,), 500, _as_the_sensor, 1 / 16, 60),
    _Recipe("1.1.0", (256,), TRAINING_IMAGES, _as_the_sensor, 1 / 16, 60),
    _Recipe("2.0.0", (256,), TRAINING_IMAGES, _as_scanned_paper, 1.0, 60),
)


def train(seed: int = 1) -> dict[str, TrainedModel]:
    """Train the three models; the same seed gives the same bytes on the same machine.

    Returns:
        Version → model, in the order of their releases.
    """
    return {recipe.version: _train(recipe, seed) for recipe in _RECIPES}


def field_images(seed: int = 1) -> tuple[Images, Labels]:
    """Return the images that devices feed, none of which any model has seen, and their labels."""
    images, labels = _shuffled(seed)
    held_out = TRAINING_IMAGES + BASELINE_IMAGES
    return images[held_out:], labels[held_out:]


def _shuffled(seed: int) -> tuple[Images, Labels]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.float32).reshape(-1, 1, SIDE, SIDE)
    order = np.random.default_rng(seed).permutation(len(images))
    return images[order], digits.target.astype(np.int64)[order]


def _train(recipe: _Recipe, seed: int) -> TrainedModel:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    images, labels = _shuffled(seed)
    field, field_labels = field_images(seed)
    known = recipe.normalise(images[: recipe.training_images])
    answers = labels[: recipe.training_images]
    network = MLPClassifier(
        recipe.hidden, max_iter=recipe.epochs, batch_size=64, alpha=0.03, random_state=seed
    )
    # One thread: these layers are too small to share, and sums in one order give the same bytes.
    with warnings.catch_warnings(), threadpool_limits(1):
        # A fixed number of epochs is what makes the training time known.
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(known.reshape(len(known), -1) * recipe.input_scale, answers)
    weights = [np.asarray(layer, dtype=np.float32) for layer in network.coefs_]
    weights[0] *= np.float32(recipe.input_scale)
    biases = [np.asarray(layer, dtype=np.float32) for layer in network.intercepts_]
    held_out = slice(TRAINING_IMAGES, TRAINING_IMAGES + BASELINE_IMAGES)
    own = recipe.normalise(images[held_out])
    return TrainedModel(
        version=recipe.version,
        model=_export(weights, biases, recipe.version),
        calibration=recipe.normalise(images[:CALIBRATION_IMAGES]),
        golden=own,
        baseline=own,
        labels=labels[held_out],
        accuracy=_accuracy(weights, biases, own, labels[held_out]),
        field_accuracy=_accuracy(weights, biases, field, field_labels),
    )


def _accuracy(
    weights: Sequence[Images], biases: Sequence[Images], images: Images, labels: Labels
) -> float:
    layer = images.reshape(len(images), -1)
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        layer = np.maximum(layer @ weight + bias, 0)
    scores = layer @ weights[-1] + biases[-1]
    return float((scores.argmax(axis=1) == labels).mean())


def _export(weights: Sequence[Images], biases: Sequence[Images], version: str) -> bytes:
    """Return the network as ONNX: Flatten, then Gemm and Relu in turn."""
    nodes = [helper.make_node("Flatten", [INPUT], ["flat"], axis=1)]
    tensors = []
    last, current = len(weights) - 1, "flat"
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        tensors += [
            numpy_helper.from_array(np.ascontiguousarray(weight), f"weight_{index}"),
            numpy_helper.from_array(np.ascontiguousarray(bias), f"bias_{index}"),
        ]
        name = OUTPUT if index == last else f"sum_{index}"
        nodes.append(
            helper.make_node("Gemm", [current, f"weight_{index}", f"bias_{index}"], [name])
        )
        if index != last:
            nodes.append(helper.make_node("Relu", [name], [f"hidden_{index}"]))
            current = f"hidden_{index}"
    graph = helper.make_graph(
        nodes,
        f"digits-{version}",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", CLASSES])],
        initializer=tensors,
    )
    model = helper.make_model(
        graph,
        producer_name="edgefleet-demo",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data

"""What will be measured of a model on devices: made for its first release, inherited by the rest.

Edges belong to the schema and not to a release, so that the sketches of two releases can be
compared. Whether a release may have another schema is decided by a gate.
"""

import re
from collections.abc import Sequence

import msgspec
import numpy as np

from fleet_contract.extraction import extract_numeric
from fleet_contract.features import (
    CategoricalFeature,
    FeatureSchema,
    FeatureSet,
    NumericFeature,
    Reduction,
    Source,
)
from fleet_contract.manifest import Manifest, TensorSpec
from fleet_server.releases import edges, limits
from fleet_server.releases.examples import Rows
from fleet_server.releases.states import OutputKind, Refusal

TABULAR_COLUMNS = 32
"""An input [batch, columns] of at most this many is a table: a feature a column."""

_SUMMARIES = (Reduction.MEAN, Reduction.DEVIATION, Reduction.MINIMUM, Reduction.MAXIMUM)


def build(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    kind: OutputKind,
    classes: list[str],
    baseline_inputs: Rows,
    baseline_outputs: Rows,
) -> FeatureSchema:
    """Return the schema of a model's first release.

    Args:
        inputs: of the model.
        outputs: of the model; the first holds class scores unless ``kind`` is ``VALUES``.
        kind: how the first output is to be read.
        classes: names of its columns; empty: 0, 1, 2 and so on.
        baseline_inputs: rows that show the ranges.
        baseline_outputs: the model's outputs on them.

    Raises:
        Refusal: ``wrong_classes`` if the first output has another number of columns,
            ``too_many_features`` beyond the contract's limit.
    """
    taken: set[str] = set()
    scores = outputs[0] if kind is not OutputKind.VALUES else None
    plain = [spec for spec in outputs if spec is not scores]
    input_set = FeatureSet(numeric=_numeric(inputs, baseline_inputs, taken))
    output_set = FeatureSet(numeric=_numeric(plain, baseline_outputs, set()))
    if scores is not None:
        read = _class_features(scores, kind, classes)
        output_set = FeatureSet([*read.numeric, *output_set.numeric], read.categorical)
    return FeatureSchema(input_set, output_set)


def check_scores(output: TensorSpec, kind: OutputKind, classes: list[str]) -> None:
    """Check that an output can be read as it is said to be, and has as many columns as classes.

    Raises:
        Refusal: ``wrong_classes`` if not.
    """
    if kind is not OutputKind.VALUES:
        _columns(output, classes)


def differences(
    previous: Manifest,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    classes: list[str],
    kind: OutputKind,
) -> list[str]:
    """Return, a sentence each, what is not as in the release before; empty: it can be inherited.

    Args:
        previous: the release before.
        inputs: of the new one.
        outputs: of the new one.
        classes: the names that were given with it; empty: they stay.
        kind: how the first output of the new one is to be read.
    """
    found = [
        f"The {side} were {_list(before)} in {previous.version} and are {_list(now)}."
        for side, before, now in (
            ("inputs", previous.inputs, list(inputs)),
            ("outputs", previous.outputs, list(outputs)),
        )
        if before != now
    ]
    vocabularies = [feature.vocabulary for feature in previous.features.outputs.categorical]
    if classes and any(vocabulary != classes for vocabulary in vocabularies):
        found.append("The classes have other names, or another order, than in the release before.")
    before = _kind_of(previous.features)
    if before is not kind:
        # Devices would go on to read it as before, and see another distribution than there is.
        found.append(
            f"The first output was read as {before.value} in {previous.version}, and is to be read "
            f"as {kind.value}: say --output {before.value} if it is as before."
        )
    return found


def _kind_of(features: FeatureSchema) -> OutputKind:
    """Return how a release's first output was read."""
    for feature in features.outputs.categorical:
        return OutputKind.LOGITS if feature.source.logits else OutputKind.PROBABILITIES
    return OutputKind.VALUES


def _columns(spec: TensorSpec, classes: list[str]) -> int:
    """Return the number of classes whose scores an output holds."""
    columns = spec.shape[1] if len(spec.shape) == 2 and spec.shape[1] else 0
    if columns < 2 or columns > limits.CLASSES or (classes and len(classes) != columns):
        raise Refusal(
            "features",
            "wrong_classes",
            f"Output {spec.name!r} of shape {['n', *spec.shape[1:]]} cannot be read as scores of "
            f"{len(classes) or 'several'} classes.",
            "Name one class a column in the metadata, or push with --output values.",
        )
    return columns


def _class_features(spec: TensorSpec, kind: OutputKind, classes: list[str]) -> FeatureSet:
    columns = _columns(spec, classes)
    logits = kind is OutputKind.LOGITS
    natural = {
        Reduction.TOP_PROBABILITY: list(edges.PROBABILITY_EDGES),
        Reduction.ENTROPY: edges.entropy_edges(columns),
        Reduction.MARGIN: list(edges.PROBABILITY_EDGES),
    }
    return FeatureSet(
        numeric=[
            NumericFeature(
                name=reduction.value,
                source=Source(spec.name, reduction, logits=logits),
                grid_bits=edges.grid_bits(np.array(inner)),
                edges=inner,
            )
            for reduction, inner in natural.items()
        ],
        categorical=[
            CategoricalFeature(
                name="class",
                source=Source(spec.name, Reduction.TOP_CLASS, logits=logits),
                vocabulary=classes or [str(column) for column in range(columns)],
            )
        ],
    )


def _numeric(specs: Sequence[TensorSpec], rows: Rows, taken: set[str]) -> list[NumericFeature]:
    drafts = []
    for spec in specs:
        name = _feature_name(spec.name)
        table = len(spec.shape) == 2 and (spec.shape[1] or 0) <= TABULAR_COLUMNS
        if table or len(spec.shape) == 1:
            width = spec.shape[1] or 1 if table else 1
            parts = [
                (f"{name}_{column}", Source(spec.name, Reduction.COLUMN, column))
                for column in range(width)
            ]
        else:
            parts = [
                (f"{name}_{reduction.value}", Source(spec.name, reduction))
                for reduction in _SUMMARIES
            ]
        for wanted, source in parts:
            unique = wanted
            while unique in taken:  # tensor names may differ in characters that features lack
                unique += "_"
            taken.add(unique)
            drafts.append(NumericFeature(unique, source, 0, []))
    if not drafts:
        return []
    if len(drafts) > limits.FEATURES:
        raise Refusal(
            "features",
            "too_many_features",
            f"The model would have {len(drafts)} features.",
            "Join inputs into fewer tensors.",
            figure=len(drafts),
            bound=limits.FEATURES,
        )
    values = extract_numeric(FeatureSet(numeric=drafts), rows)
    return [
        msgspec.structs.replace(
            draft,
            grid_bits=edges.grid_bits(values[:, index]),
            edges=edges.quantile_edges(values[:, index]),
        )
        for index, draft in enumerate(drafts)
    ]


def _feature_name(tensor: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "_", tensor.lower()).strip("_")[:100]
    return plain if plain[:1].isalpha() else f"tensor_{plain}".rstrip("_")


def _list(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{s.name} {s.dtype} {['n', *s.shape[1:]]}" for s in specs)[:300]
